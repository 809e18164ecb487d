"""The 35 data sets of ODinW ("object detection in the wild"), the 13 that GLIP reports, and wordings.

A data set's classes are those of its annotation file, unless said otherwise
``valid/annotations_without_background.json``. Source of folders, choice and wordings: Li et al., CVPR 2022,
Appendix E, and the released configurations.
"""

_root = 'data/odinw/'
_exported = dict(ann_file='val_annotations_without_background.json', data_prefix=dict(img=''))
odinw35 = dict(
    AerialMaritimeDrone_large=dict(data_root=_root + 'AerialMaritimeDrone/large'),
    AerialMaritimeDrone_tiled=dict(data_root=_root + 'AerialMaritimeDrone/tiled'),
    AmericanSignLanguageLetters=dict(
        data_root=_root + 'AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco'
    ),
    Aquarium=dict(data_root=_root + 'Aquarium/Aquarium Combined.v2-raw-1024.coco'),
    BCCD=dict(data_root=_root + 'BCCD/BCCD.v3-raw.coco'),
    boggleBoards=dict(data_root=_root + 'boggleBoards/416x416AutoOrient/export', **_exported),
    brackishUnderwater=dict(data_root=_root + 'brackishUnderwater/960x540'),
    ChessPieces=dict(data_root=_root + 'ChessPieces/Chess Pieces.v23-raw.coco'),
    CottontailRabbits=dict(data_root=_root + 'CottontailRabbits'),
    dice=dict(data_root=_root + 'dice/mediumColor/export', **_exported),
    DroneControl=dict(data_root=_root + 'DroneControl/Drone Control.v3-raw.coco'),
    EgoHands_generic=dict(data_root=_root + 'EgoHands/generic'),
    EgoHands_specific=dict(data_root=_root + 'EgoHands/specific'),
    HardHatWorkers=dict(data_root=_root + 'HardHatWorkers/raw'),
    MaskWearing=dict(data_root=_root + 'MaskWearing/raw'),
    MountainDewCommercial=dict(data_root=_root + 'MountainDewCommercial'),
    NorthAmericaMushrooms=dict(
        data_root=_root + 'NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco'
    ),
    openPoetryVision=dict(data_root=_root + 'openPoetryVision/512x512'),
    OxfordPets_by_breed=dict(data_root=_root + 'OxfordPets/by-breed'),
    OxfordPets_by_species=dict(data_root=_root + 'OxfordPets/by-species'),
    PKLot=dict(data_root=_root + 'PKLot/640'),
    Packages=dict(data_root=_root + 'Packages/Raw'),
    PascalVOC=dict(data_root=_root + 'PascalVOC'),
    pistols=dict(data_root=_root + 'pistols/export', **_exported),
    plantdoc=dict(data_root=_root + 'plantdoc/416x416'),
    pothole=dict(data_root=_root + 'pothole'),
    Raccoon=dict(data_root=_root + 'Raccoon/Raccoon.v2-raw.coco'),
    selfdrivingCar=dict(data_root=_root + 'selfdrivingCar/fixedLarge/export', **_exported),
    ShellfishOpenImages=dict(data_root=_root + 'ShellfishOpenImages/raw'),
    ThermalCheetah=dict(data_root=_root + 'ThermalCheetah'),
    thermalDogsAndPeople=dict(data_root=_root + 'thermalDogsAndPeople'),
    UnoCards=dict(data_root=_root + 'UnoCards/raw'),
    VehiclesOpenImages=dict(data_root=_root + 'VehiclesOpenImages/416x416'),
    WildfireSmoke=dict(data_root=_root + 'WildfireSmoke'),
    websiteScreenshots=dict(data_root=_root + 'websiteScreenshots'),
)
odinw13 = (
    'AerialMaritimeDrone_large Aquarium CottontailRabbits EgoHands_generic '
    'NorthAmericaMushrooms Packages PascalVOC pistols pothole Raccoon ShellfishOpenImages '
    'thermalDogsAndPeople VehiclesOpenImages'
).split()
odinw_common = dict(
    type='ovd.OwnClassesDataset',
    ann_file='valid/annotations_without_background.json',
    data_prefix=dict(img='valid'),
    degenerate_boxes='drop',
)
odinw_wordings = dict(
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
    # By category id; 1 is the parent class, which has no boxes.
    ChessPieces={
        1: None,
        2: dict(name='black bishop'),
        3: dict(name='black king'),
        4: dict(name='black knight'),
        5: dict(name='black pawn'),
        6: dict(name='black queen'),
        7: dict(name='black rook'),
        8: dict(name='white bishop'),
        9: dict(name='white king'),
        10: dict(name='white knight'),
        11: dict(name='white pawn'),
        12: dict(name='white queen'),
        13: dict(name='white rook'),
    },
)
odinw_test = dict(_delete_=True, type='ovd.NamedParts', common=odinw_common, missing='drop')
odinw_metric = dict(
    _delete_=True, type='ovd.NamedPartsMetric', metric=dict(type='ovd.DetectionMetric', metric='bbox')
)
odinw_needs = dict(test=[dict(path='data/odinw', what='ODinW', how='see data/README.md')])
