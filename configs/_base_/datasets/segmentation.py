"""One label-map data set, chosen by ``data``; see data/README.md for the folders.

A config that inherits from this sets ``data`` and ``vocabulary``. Training images are resized to 0.5 to 2
times the usual long side, padded and cropped to 480 x 480, as by LSeg; images are tested at their own size.
Pixels with ignored ids count nowhere. background='ignore' in the data sets leaves the background out.

- ade: ADE20K, 150 classes, no background; id 0 is unlabelled.
- coco_object: the 80 things of COCO-Stuff's maps, and background for the rest, as GroupViT evaluates
  (Xu et al., CVPR 2022); coco_object_instances paints COCO's instances instead, larger ones first, and its
  figures differ a little where objects overlap.
- coco_stuff: COCO-Stuff 164k, 80 things and 91 stuff classes.
- context: PASCAL Context, 59 classes and background.
- voc: PASCAL VOC 2012, 20 classes and background; SBD for training (10,582 images). Without SBD use
  ann_file='ImageSets/Segmentation/train.txt' and seg_map_path='SegmentationClass'.
"""

data = 'voc'
_gaps = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # ids of no class in COCO-Stuff
_voc = 'data/VOCdevkit/VOC2012/'
_coco_maps = dict(
    root='data/coco/',
    side=640,
    train=dict(data_prefix=dict(img_path='train2017', seg_map_path='stuffthingmaps/train2017')),
    test=dict(data_prefix=dict(img_path='val2017', seg_map_path='stuffthingmaps/val2017')),
    needs=('stuffthingmaps/val2017', 'COCO 2017 and the maps of COCO-Stuff 164k', 'COCO-Stuff'),
)
_sets = dict(
    ade=dict(
        root='data/ade/ADEChallengeData2016/',
        vocabulary='ade150',
        train=dict(data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')),
        test=dict(data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')),
        labels=dict(raw_classes='ade150', raw_ids=1, ignore_ids=[0]),
        needs=('annotations/validation', 'ADE20K scene parsing', 'ADE20K'),
    ),
    coco_object=dict(
        _coco_maps,
        vocabulary='coco',
        labels=dict(
            raw_classes='coco',
            raw_ids=[raw for raw in range(91) if raw not in _gaps],
            background='class',
            background_ids=[*range(91, 182), 255],
        ),
    ),
    coco_object_instances=dict(
        root='data/coco/',
        side=640,
        vocabulary='coco',
        train=dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img_path='train2017')),
        test=dict(ann_file='annotations/instances_val2017.json', data_prefix=dict(img_path='val2017')),
        labels=dict(background='class'),
        needs=('annotations/instances_val2017.json', 'COCO 2017 annotations and images', 'COCO 2017'),
    ),
    coco_stuff=dict(
        _coco_maps,
        vocabulary='cocostuff171',
        labels=dict(
            raw_classes='cocostuff171',
            raw_ids=[raw for raw in range(182) if raw not in _gaps],
            ignore_ids=[255],
        ),
    ),
    context=dict(
        root='data/VOCdevkit/VOC2010/',
        vocabulary='context59',
        train=dict(
            ann_file='ImageSets/SegmentationContext/train.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        ),
        test=dict(
            ann_file='ImageSets/SegmentationContext/val.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        ),
        labels=dict(
            raw_classes='context59', raw_ids=1, background='class', background_ids=[0], ignore_ids=[255]
        ),
        needs=('SegmentationClassContext', 'PASCAL Context', 'PASCAL Context'),
    ),
    voc=dict(
        root=_voc,
        vocabulary='voc',
        train=dict(
            ann_file='ImageSets/Segmentation/trainaug.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
        ),
        test=dict(
            ann_file='ImageSets/Segmentation/val.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ),
        calibrate=dict(
            ann_file='ImageSets/Segmentation/train.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ),
        labels=dict(raw_classes='voc', raw_ids=1, background='class', background_ids=[0], ignore_ids=[255]),
        needs=('SegmentationClass', 'PASCAL VOC 2012 and, for training, SBD', 'VOC 2012 segmentation'),
    ),
)
_set = _sets[data]
data_root = _set['root']
vocabulary = _set['vocabulary']
_side = _set.get('side', 520)
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(_side, _side), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='Pad', size=(480, 480), pad_val=dict(img=0, seg=-1)),
    dict(type='RandomCrop', crop_size=(480, 480), ignore_index=-1),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='ovd.LoadImage'), dict(type='ovd.LoadSegmentation'), dict(type='PackSegInputs')]
_common = dict(
    type='ovd.OpenVocabularySegDataset', data_root=data_root, vocabulary=vocabulary, **_set['labels']
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(_common, **_set['train'], pipeline=train_pipeline),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(_common, **_set['test'], pipeline=test_pipeline, test_mode=True),
)
val_dataloader = test_dataloader
# Training images as in the test, for tools/calibrate_thresholds.py.
calibration_images = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(_common, **_set.get('calibrate', _set['train']), pipeline=test_pipeline, test_mode=True),
)
test_evaluator = dict(type='ovd.SegmentationMetric')
val_evaluator = test_evaluator
_need = dict(
    path=data_root + _set['needs'][0],
    what=_set['needs'][1],
    how=f'see data/README.md, section {_set["needs"][2]}',
)
needs = dict(train=[_need], test=[_need])
