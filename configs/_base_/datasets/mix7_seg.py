"""Seven data sets under one vocabulary of 242 classes, for a model of everything. See data/README.md.

ADE20K, BDD100K, Cityscapes, COCO-Stuff, IDD, Mapillary Vistas and SUN RGB-D, those that MSeg joins (Lambert
et al., CVPR 2020). The tables of names are ours: synonyms in ovd/assets/vocabularies/mix7.json join by
themselves, `aliases` join the rest, leftovers such as 'metal' are ignored (None), and no class is dropped
without being named here (absent_policy='error'). Test with the section of any other base.
"""

vocabulary = 'mix7'
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(520, 520), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='Pad', size=(480, 480), pad_val=dict(img=0, seg=-1)),
    dict(type='RandomCrop', crop_size=(480, 480), ignore_index=-1),
    dict(type='PackSegInputs'),
]
_street_ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
_coco_gaps = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # ids of no class
_parts = [
    dict(
        data_root='data/ade/ADEChallengeData2016/',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        raw_classes='ade150',
        raw_ids=1,
        ignore_ids=[0],
    ),
    dict(
        data_root='data/bdd100k/',
        data_prefix=dict(img_path='images/10k/train', seg_map_path='labels/sem_seg/masks/train'),
        raw_classes='cityscapes',
        ignore_ids=[255],
    ),
    dict(
        data_root='data/cityscapes/',
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelIds.png',
        raw_classes='cityscapes',
        raw_ids=_street_ids,
        ignore_ids=[raw for raw in (*range(34), 255) if raw not in _street_ids],
    ),
    dict(
        data_root='data/coco/',
        data_prefix=dict(img_path='train2017', seg_map_path='stuffthingmaps/train2017'),
        raw_classes='cocostuff171',
        raw_ids=[raw for raw in range(182) if raw not in _coco_gaps],
        ignore_ids=[255],
        aliases={
            'dining table': 'table',
            'potted plant': 'plant',
            'wine glass': 'glass',
            'handbag': 'bag',
            'sports ball': 'ball',
            'branch': 'tree',
            'building-other': 'building',
            'bush': 'plant',
            'carpet': 'rug',
            'ceiling-other': 'ceiling',
            'ceiling-tile': 'ceiling',
            'clouds': 'sky',
            'cupboard': 'cabinet',
            'desk-stuff': 'desk',
            'dirt': 'earth',
            'door-stuff': 'door',
            **dict.fromkeys(
                ['floor-marble', 'floor-other', 'floor-stone', 'floor-tile', 'floor-wood'], 'floor'
            ),
            'food-other': 'food',
            'ground-other': 'earth',
            'leaves': 'tree',
            'mat': 'rug',
            'mirror-stuff': 'mirror',
            'mud': 'earth',
            'pavement': 'sidewalk',
            'plant-other': 'plant',
            'playingfield': 'playing field',
            'salad': 'food',
            'sky-other': 'sky',
            'stone': 'rock',
            **dict.fromkeys(
                'wall-brick wall-concrete wall-other wall-panel wall-stone wall-tile wall-wood'.split(),
                'wall',
            ),
            'water-other': 'water',
            'window-blind': 'blind',
            'window-other': 'windowpane',
            **dict.fromkeys(
                (
                    'cardboard cloth fog furniture-other metal moss plastic solid-other straw '
                    'structural-other textile-other waterdrops wood'
                ).split()
            ),
        },
    ),
    dict(
        data_root='data/idd/',
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labellevel3Ids.png',
        raw_classes='idd26',
        ignore_ids=[255],
        aliases={
            **dict.fromkeys(
                ['drivable fallback', 'non-drivable fallback', 'vehicle fallback', 'obs-str-bar-fallback']
            ),
        },
    ),
    dict(
        data_root='data/mapillary/',
        data_prefix=dict(img_path='training/images', seg_map_path='training/v1.2/labels'),
        raw_classes='mapillary65',
        ignore_ids=[65],
        aliases={
            'ground animal': 'animal',
            'crosswalk - plain': 'crosswalk',
            'curb cut': 'curb',
            'parking': 'parking lot',
            'pedestrian area': 'sidewalk',
            'service lane': 'road',
            'bicyclist': 'rider',
            'motorcyclist': 'rider',
            'other rider': 'rider',
            'lane marking - crosswalk': 'crosswalk',
            'lane marking - general': 'lane marking',
            'traffic sign frame': 'pole',
            'utility pole': 'pole',
            'traffic sign (back)': 'traffic sign',
            'traffic sign (front)': 'traffic sign',
            'on rails': 'train',
            **dict.fromkeys(['other vehicle', 'wheeled slow', 'car mount', 'ego vehicle']),
        },
    ),
    dict(
        data_root='data/sunrgbd/',
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        raw_classes='sunrgbd37',
        raw_ids=1,
        ignore_ids=[0],
        aliases={'floor mat': 'rug', 'books': 'book'},
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='ovd.WeightedPartsSampler'),  # weights=[...]: one per part, equal by default
    dataset=dict(
        type='ovd.UnifiedSegDataset',
        vocabulary=vocabulary,
        common=dict(type='ovd.OpenVocabularySegDataset', absent_policy='error', pipeline=train_pipeline),
        parts=_parts,
    ),
)
needs = dict(
    train=[
        dict(
            path=part['data_root'] + part['data_prefix']['seg_map_path'],
            what='label maps of one of the seven data sets',
            how='see data/README.md, section Seven data sets',
        )
        for part in _parts
    ]
)
