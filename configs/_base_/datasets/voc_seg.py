"""PASCAL VOC 2012 segmentation, 20 classes and background, SBD for training. See data/README.md.

A leaf adds its words: dataset.vocabulary of the train_, val_ and test_dataloader. Training uses the 10,582
pictures that SBD makes of VOC's; without SBD, train with ann_file='ImageSets/Segmentation/train.txt' and
seg_map_path='SegmentationClass'. background='ignore' in the data sets gives the 20 classes without
background.
"""

data_root = 'data/VOCdevkit/VOC2012/'
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
_labels = dict(raw_classes='voc', raw_ids=1, background='class', background_ids=[0], ignore_ids=[255])
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        ann_file='ImageSets/Segmentation/trainaug.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
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
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
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
        path=data_root + 'SegmentationClass',
        what='PASCAL VOC 2012 and, for training, SBD',
        how='see data/README.md, section VOC 2012 segmentation',
    ),
]
