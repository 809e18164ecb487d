"""ViLD on OV-Shapes: finds shapes whose words never had a box in training. The quickstart's detector.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/rpn_shapes.py
    python tools/cache_clip_regions.py configs/vild_shapes.py
    python tools/train.py configs/vild_shapes.py
    python tools/test.py configs/vild_shapes.py work_dirs/vild_shapes/latest.pth

Gu et al., ICLR 2022, in small: a slim ResNet-18 that starts from the proposal network, one head for words and
distillation, the tiny CLIP as teacher. 550 steps of 16 images, minutes on two cores; scores and times are
in docs/results.md.
"""

_base_ = [
    '../_base_/models/slim_rpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes.py',
]

max_iters = 550
lr = 1.5e-3
channels_last = True  # convolutions on a CPU are faster so
clip = dict(model='clip_tiny_shapes')
region_cache = dict(
    store=_base_.region_store,
    dataset=dict(
        ann_file=_base_.data_root + 'annotations/instances_train.json', images=_base_.data_root + 'train'
    ),
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
    text=dict(vocabulary=_base_.vocabulary, templates='single', encoder=clip),
    data_preprocessor=dict(pad_mask=True),
    backbone=dict(frozen_stages=1),
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
        rpn=dict(nms_pre=100, max_per_img=64),
        rcnn=dict(
            score_thr=1e-3, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50, mask_thr_binary=0.5
        ),
    ),
)
