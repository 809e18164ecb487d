"""ViLD: Mask R-CNN with ResNet-50 and FPN from scratch; a config that inherits from this adds its words."""

clip = dict(model='data/weights/clip_vit_b32')
norm_cfg = dict(type='SyncBN')
max_per_image = 300
model = dict(
    type='ovd.ViLD',
    text=dict(templates='vild63', encoder=clip),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
    ),
    backbone=dict(type='ResNet', depth=50, norm_cfg=norm_cfg, norm_eval=False, style='pytorch'),
    neck=dict(
        type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5, norm_cfg=norm_cfg
    ),
    rpn_head=dict(
        type='RPNHead',
        in_channels=256,
        feat_channels=256,
        num_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    roi_head=dict(
        type='ovd.ViLDRoIHead',
        distill_weight=0.5,
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type='ovd.ViLDBBoxHead',
            mode='vild',
            in_channels=256,
            roi_feat_size=7,
            trunk=dict(num_convs=4, conv_channels=256, num_fcs=2, fc_channels=1024, norm_cfg=norm_cfg),
            embed_dim=512,
            temperature=0.01,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='SmoothL1Loss'),
        ),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type='FCNMaskHead',
            class_agnostic=True,
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=1,
            norm_cfg=norm_cfg,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='ovd.RepeatableSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(
            nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
        ),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
            ),
            sampler=dict(type='ovd.RepeatableSampler', num=512, pos_fraction=0.25, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            score_thr=1e-4,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=max_per_image,
            mask_thr_binary=0.5,
        ),
    ),
)
# ViLD-text + CLIP: crops of the 300 best proposals, classified at test time.
clip_crops = dict(
    image_encoder=clip, crops=dict(mode='warp', scales=(1.0, 1.5), resize='fast'), num_regions=300
)
model_needs = [
    dict(path=clip['model'], what="OpenAI's CLIP ViT-B/32", how='see data/README.md, section Weights'),
]
