"""COCO-Object: the 80 things of COCO-Stuff's pixel maps, and background (81). See data/README.md.

Stuff and unlabelled pixels are background. A leaf adds its words: dataset.vocabulary of the train_, val_
and test_dataloader. coco_object_instances_seg.py needs no pixel maps.

Source of the rule: the evaluation of GroupViT (Xu et al., CVPR 2022).
"""

data_root = 'data/coco/'
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(640, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='Pad', size=(480, 480), pad_val=dict(img=0, seg=-1)),
    dict(type='RandomCrop', crop_size=(480, 480), ignore_index=-1),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='PackSegInputs'),
]
_gaps = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # ids of no class
_labels = dict(
    raw_classes='coco',
    raw_ids=[raw for raw in range(91) if raw not in _gaps],
    background='class',
    background_ids=[*range(91, 182), 255],
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train2017', seg_map_path='stuffthingmaps/train2017'),
        pipeline=train_pipeline,
        **_labels,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val2017', seg_map_path='stuffthingmaps/val2017'),
        pipeline=test_pipeline,
        test_mode=True,
        **_labels,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='ovd.SegmentationMetric')
val_evaluator = test_evaluator
needs = [
    dict(
        path=data_root + 'stuffthingmaps/val2017',
        what='COCO 2017 and the maps of COCO-Stuff 164k',
        how='see data/README.md, section COCO-Stuff',
    ),
]
