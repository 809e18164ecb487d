"""Class-agnostic region proposals on OV-Shapes, trained on the boxes of the base classes alone.

    python tools/train.py configs/rpn_shapes.py

First step of ViLD on OV-Shapes: its best boxes are embedded by CLIP (tools/cache_clip_regions.py
configs/vild_shapes.py) and its weights start the detector. 200 steps of 16 pictures, a minute on two cores.
Expected: recall at IoU 0.5 of the 16 best boxes about .9, novel classes included.
"""

_base_ = '../_base_/runtime.py'

data_root = 'data/shapes/'
vocabulary = 'shapes'  # the 24 nouns, 8 of them novel: ovd/assets/vocabularies/shapes.json
needs = [dict(path=data_root + 'annotations', what='OV-Shapes', how='ovd data shapes (tools/make_shapes.py)')]

model = dict(
    type='RPN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=24,
        stem_channels=24,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        style='pytorch',
    ),
    neck=dict(type='FPN', in_channels=[48, 96, 192], out_channels=64, num_outs=3),
    rpn_head=dict(
        type='RPNHead',
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[3], ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        )
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
    ),
)

train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        vocabulary=vocabulary,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val'),
        vocabulary=vocabulary,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=1,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root=data_root,
        ann_file='annotations/instances_test.json',
        data_prefix=dict(img='test'),
        vocabulary=vocabulary,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type='ovd.ProposalRecall', proposal_nums=(8, 16, 50))
test_evaluator = val_evaluator

max_iters = 200
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
channels_last = True  # convolutions on a CPU are faster so
default_hooks = dict(checkpoint=dict(interval=max_iters))
