"""The 35 data sets of ODinW ("object detection in the wild"), the 13 that GLIP reports, and its wordings.

A data set's classes are those of its annotation file. Source of folders, choice and wordings: Li et al.,
CVPR 2022, Appendix E, and the released configurations, which word five of the 35 data sets, replace the names
of the chess pieces by category id, and word none of the 13.
"""

odinw_root = 'data/odinw/'
_listed = dict(ann_file='valid/annotations_without_background.json', data_prefix=dict(img='valid'))
_exported = dict(ann_file='val_annotations_without_background.json', data_prefix=dict(img=''))
_folders = dict(
    AerialMaritimeDrone_large='AerialMaritimeDrone/large',
    AerialMaritimeDrone_tiled='AerialMaritimeDrone/tiled',
    AmericanSignLanguageLetters='AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco',
    Aquarium='Aquarium/Aquarium Combined.v2-raw-1024.coco',
    BCCD='BCCD/BCCD.v3-raw.coco',
    boggleBoards='boggleBoards/416x416AutoOrient/export',
    brackishUnderwater='brackishUnderwater/960x540',
    ChessPieces='ChessPieces/Chess Pieces.v23-raw.coco',
    CottontailRabbits='CottontailRabbits',
    dice='dice/mediumColor/export',
    DroneControl='DroneControl/Drone Control.v3-raw.coco',
    EgoHands_generic='EgoHands/generic',
    EgoHands_specific='EgoHands/specific',
    HardHatWorkers='HardHatWorkers/raw',
    MaskWearing='MaskWearing/raw',
    MountainDewCommercial='MountainDewCommercial',
    NorthAmericaMushrooms='NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco',
    openPoetryVision='openPoetryVision/512x512',
    OxfordPets_by_breed='OxfordPets/by-breed',
    OxfordPets_by_species='OxfordPets/by-species',
    PKLot='PKLot/640',
    Packages='Packages/Raw',
    PascalVOC='PascalVOC',
    pistols='pistols/export',
    plantdoc='plantdoc/416x416',
    pothole='pothole',
    Raccoon='Raccoon/Raccoon.v2-raw.coco',
    selfdrivingCar='selfdrivingCar/fixedLarge/export',
    ShellfishOpenImages='ShellfishOpenImages/raw',
    ThermalCheetah='ThermalCheetah',
    thermalDogsAndPeople='thermalDogsAndPeople',
    UnoCards='UnoCards/raw',
    VehiclesOpenImages='VehiclesOpenImages/416x416',
    WildfireSmoke='WildfireSmoke',
    websiteScreenshots='websiteScreenshots',
)
odinw35 = {
    name: dict(data_root=odinw_root + folder, **(_exported if folder.endswith('export') else _listed))
    for name, folder in _folders.items()
}
odinw13 = {
    name: odinw35[name]
    for name in (
        'AerialMaritimeDrone_large',
        'Aquarium',
        'CottontailRabbits',
        'EgoHands_generic',
        'NorthAmericaMushrooms',
        'Packages',
        'PascalVOC',
        'pistols',
        'pothole',
        'Raccoon',
        'ShellfishOpenImages',
        'thermalDogsAndPeople',
        'VehiclesOpenImages',
    )
}
_chess = ['bishop', 'king', 'knight', 'pawn', 'queen', 'rook']
odinw35['ChessPieces'] |= dict(
    prompts={
        1: None,  # the parent class, which has no boxes
        **{2 + place: dict(name=f'black {piece}') for place, piece in enumerate(_chess)},
        **{8 + place: dict(name=f'white {piece}') for place, piece in enumerate(_chess)},
    }
)
odinw13_worded = odinw13 | {
    name: odinw35[name] | dict(prompts=prompts)
    for name, prompts in dict(
        Aquarium=dict(
            penguin=dict(suffix=', which is black and white'),
            puffin=dict(suffix=' with orange beaks'),
            stingray=dict(suffix=' which is flat and round'),
        ),
        CottontailRabbits={'Cottontail-Rabbit': dict(name='rabbit')},
        EgoHands_generic=dict(hand=dict(suffix=' of a person')),
        NorthAmericaMushrooms=dict(CoW=dict(name='flat mushroom'), chanterelle=dict(name='yellow mushroom')),
        Packages=dict(package=dict(prefix='there is a ', suffix=' on the porch')),
        pothole=dict(pothole=dict(prefix='there are some ', name='holes', suffix=' on the road')),
    ).items()
}
odinw35 |= {
    name: odinw13_worded[name]
    for name in ('CottontailRabbits', 'EgoHands_generic', 'NorthAmericaMushrooms', 'Packages', 'pothole')
}
