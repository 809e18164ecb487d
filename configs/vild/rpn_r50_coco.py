"""Class-agnostic region proposals on COCO, trained on the boxes of the 48 base classes alone.

    python tools/train.py configs/rpn_r50_coco.py
    torchrun --nproc-per-node 8 tools/train.py configs/rpn_r50_coco.py --launcher pytorch

First step of ViLD: CLIP embeds its best boxes (tools/cache_clip_regions.py configs/vild_r50_coco.py).
ResNet-50 and FPN, 90k iterations of 16 images (8 GPUs x 2), about 4 GB per GPU (estimate). For other
batches add --cfg-options auto_scale_lr.enable=True.
"""

_base_ = ['../_base_/datasets/base_novel.py', '../_base_/runtime.py']

data = 'coco'
vocabulary = 'coco_ov'  # 65 names, 17 of them novel: ovd/assets/vocabularies/coco_ov.json
region_cache = None
resnet50 = 'data/weights/resnet50.pth'
needs = dict(
    train=[
        *_base_.needs.train,
        dict(
            path=resnet50,
            what="torchvision's ImageNet weights of ResNet-50",
            how='see data/README.md, section Weights',
        ),
    ]
)

model = dict(
    type='RPN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        frozen_stages=1,
        norm_cfg=dict(type='BN'),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint=resnet50),
    ),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead',
        in_channels=256,
        feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='ovd.RepeatableSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        )
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
    ),
)

train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomChoiceResize', scales=[(1333, side) for side in range(640, 801, 32)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ovd.PackDetInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
_with_boxes = dict(filter_cfg=dict(filter_empty_gt=True))
train_dataloader = dict(batch_size=2, num_workers=4, dataset=dict(pipeline=train_pipeline, **_with_boxes))
test_dataloader = dict(dataset=_with_boxes)
test_evaluator = dict(
    _delete_=True,
    type='ovd.ProposalRecall',
    proposal_nums=(100, 300, 1000),
    iou_threshold=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
)

max_iters = 90000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
auto_scale_lr = dict(enable=False, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[max_iters * 2 // 3, max_iters * 8 // 9], gamma=0.1),
]
