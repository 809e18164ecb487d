"""ADE20K, scene parsing: 150 classes, none of them background. See data/README.md.

A leaf adds its words: dataset.vocabulary of the train_, val_ and test_dataloader. Training pictures are
resized to a long side of 260 to 1040, padded and cut to 480 x 480, as by LSeg. Pixels with id 0 are
unlabelled and count nowhere; pictures are tested in their own size.
"""

data_root = 'data/ade/ADEChallengeData2016/'
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
_labels = dict(raw_classes='ade150', raw_ids=1, ignore_ids=[0])
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
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
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
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
        path=data_root + 'annotations/validation',
        what='ADE20K scene parsing',
        how='see data/README.md, section ADE20K',
    ),
]
