"""ViLD on OV-Shapes: finds shapes whose words never had a box in training. The quickstart's detector.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/rpn_shapes.py
    python tools/cache_clip_regions.py configs/vild_shapes.py
    python tools/train.py configs/vild_shapes.py
    python tools/test.py configs/vild_shapes.py work_dirs/vild_shapes/latest.pth

Gu et al., ICLR 2022, in small: a slim ResNet-18 that starts from the proposal network, one head for words and
distillation, the tiny CLIP as teacher. 550 steps of 16 pictures, minutes on two cores; scores and times are
in docs/results.md.
"""

_base_ = '../_base_/runtime.py'

data_root = 'data/shapes/'
vocabulary = 'shapes'  # the 24 nouns, 8 of them novel: ovd/assets/vocabularies/shapes.json
clip = dict(model='clip_tiny_shapes')
needs = [
    dict(path=data_root + 'annotations', what='OV-Shapes', how='ovd data shapes (tools/make_shapes.py)'),
]
region_cache = dict(
    store=data_root + 'regions_train',
    dataset=dict(ann_file=data_root + 'annotations/instances_train.json', images=data_root + 'train'),
    image_encoder=clip,
    crops=dict(mode='warp', scales=(1.0, 1.5)),
    proposals=dict(
        config='configs/rpn_shapes.py', checkpoint='work_dirs/rpn_shapes/latest.pth', top=8, min_side=8
    ),
    batch_size=256,
)
load_from = 'work_dirs/rpn_shapes/latest.pth'  # tools/train.py configs/rpn_shapes.py makes it

model = dict(
    type='ovd.ViLD',
    text=dict(vocabulary=vocabulary, templates='single', encoder=clip),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=24,
        stem_channels=24,
        out_indices=(1, 2, 3),
        frozen_stages=1,
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
    roi_head=dict(
        type='ovd.ViLDRoIHead',
        distill_weight=0.5,
        objectness_power=0.5,
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=5, sampling_ratio=1),
            out_channels=64,
            featmap_strides=[8, 16],
            finest_scale=28,
        ),
        bbox_head=dict(
            type='ovd.ViLDBBoxHead',
            mode='vild',
            in_channels=64,
            roi_feat_size=5,
            trunk=dict(
                num_convs=1,
                conv_channels=64,
                num_fcs=1,
                fc_channels=256,
                norm_cfg=dict(type='GN', num_groups=8),
            ),
            embed_dim=128,
            temperature=0.03,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='SmoothL1Loss'),
        ),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=10, sampling_ratio=1),
            out_channels=64,
            featmap_strides=[8, 16],
            finest_scale=28,
        ),
        mask_head=dict(
            type='FCNMaskHead',
            class_agnostic=True,
            num_convs=1,
            in_channels=64,
            conv_out_channels=32,
            num_classes=1,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(
            nms_pre=100, max_per_img=64, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
        ),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
            ),
            sampler=dict(type='RandomSampler', num=24, pos_fraction=0.5, add_gt_as_proposals=True),
            mask_size=20,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=64, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            score_thr=1e-3, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50, mask_thr_binary=0.5
        ),
    ),
)

train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ovd.PackDetInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
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
        pipeline=[
            *train_pipeline[:-1],
            dict(type='ovd.LoadRegionEmbeddings', store=region_cache['store'], num_regions=8),
            train_pipeline[-1],
        ],
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
val_evaluator = dict(type='ovd.DetectionMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

max_iters = 550
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
channels_last = True  # convolutions on a CPU are faster so
default_hooks = dict(checkpoint=dict(interval=max_iters))
