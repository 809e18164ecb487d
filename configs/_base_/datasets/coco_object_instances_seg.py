"""COCO-Object from COCO's instances, and background (81). See data/README.md.

Instances are painted, larger ones first; the rest is background. A leaf adds its words: dataset.vocabulary
of the train_, val_ and test_dataloader. Figures differ a little from those of coco_object_seg.py, whose
maps settle overlaps in another way.
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
_labels = dict(background='class')
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img_path='train2017'),
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
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img_path='val2017'),
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
        path=data_root + 'annotations/instances_val2017.json',
        what='COCO 2017 annotations and images',
        how='see data/README.md, section COCO 2017',
    ),
]
