"""PASCAL-5i, fold 0: 15 classes to train on, 5 to test on. See data/README.md.

Training episodes are an image and one of its classes, and a support image of that class; both are trained
on, so that a batch of 20 holds 40 pictures. Pictures are squeezed to 480 x 480, where tests are scored, too
(score_at='original' scores in their own frame). A leaf may add dataset.vocabulary and dataset.fold. HSNet's
lists of episodes go to dataset.lists (a folder with trn/ and val/); without them they are made from the
pictures of VOC 2012.
"""

data_root = 'data/VOCdevkit/VOC2012/'
_load = [dict(type='ovd.LoadImage'), dict(type='ovd.LoadSegmentation')]
_pack = dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'class_id'))
train_pipeline = [*_load, dict(type='ovd.SquareResize', size=480), _pack]
test_pipeline = [*_load, dict(type='ovd.SquareResize', size=480, score_at='square'), _pack]
train_dataloader = dict(
    batch_size=20,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='ovd.flatten_episodes'),
    dataset=dict(
        type='ovd.Pascal5iDataset',
        data_root=data_root,
        ann_file='ImageSets/Segmentation/trainaug.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.Pascal5iDataset',
        data_root=data_root,
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='ovd.FewShotMetric')
val_evaluator = test_evaluator
needs = [
    dict(
        path=data_root + 'SegmentationClassAug',
        what='PASCAL VOC 2012 and SBD',
        how='see data/README.md, section VOC 2012 segmentation',
    ),
]
