"""PASCAL Context: 59 classes and background (60). See data/README.md.

A leaf adds its words: dataset.vocabulary of the train_, val_ and test_dataloader. background='ignore' in
the data sets gives the 59 classes without background.
"""

data_root = 'data/VOCdevkit/VOC2010/'
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(520, 520), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='Pad', size=(480, 480), pad_val=dict(img=0, seg=-1)),
    dict(type='RandomCrop', crop_size=(480, 480), ignore_index=-1),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='PackSegInputs'),
]
_labels = dict(raw_classes='context59', raw_ids=1, background='class', background_ids=[0], ignore_ids=[255])
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        ann_file='ImageSets/SegmentationContext/train.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
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
        ann_file='ImageSets/SegmentationContext/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
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
        path=data_root + 'SegmentationClassContext',
        what='PASCAL Context',
        how='see data/README.md, section PASCAL Context',
    ),
]
