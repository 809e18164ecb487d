"""ViLD, Mask R-CNN R50-FPN on LVIS v1: 866 base classes with boxes, 337 rare ones known by name alone.

    python tools/train.py configs/rpn_r50_lvis.py                  # class-agnostic proposals, base boxes
    python tools/cache_clip_regions.py configs/vild_r50_lvis.py    # CLIP on 2 x 300 crops per image, 31 GB
    torchrun --nproc-per-node 8 tools/train.py configs/vild_r50_lvis.py --launcher pytorch --amp
    python tools/test.py configs/vild_r50_lvis.py work_dirs/vild_r50_lvis/latest.pth

Gu et al., ICLR 2022: 180k iterations of 256 pictures from scratch, 1024 pixels, large-scale jitter, weight
0.5. The loader takes 8 pictures per GPU, so the recipe as published wants 32 GPUs; with fewer pictures per
step add --cfg-options auto_scale_lr.enable=True. About 30 GB per GPU with --amp (estimate).
Published mask AP: 22.5, rare 16.1 (official release 16.6), common 20.0, frequent 28.3. Not yet trained by us.
"""

_base_ = ['../_base_/datasets/lvis_base_novel.py', '../_base_/runtime.py']

vocabulary = 'lvis'  # 1203 names, the 337 rare ones novel: ovd/assets/vocabularies/lvis.json
clip = dict(model='data/weights/clip_vit_b32')
norm_cfg = dict(type='SyncBN')
region_cache = dict(
    store='data/lvis_v1/regions_train',
    dataset=dict(ann_file='data/lvis_v1/annotations/lvis_v1_train.json', images='data/coco'),
    image_encoder=dict(dtype='float16', **clip),
    crops=dict(mode='warp', scales=(1.0, 1.5)),
    proposals=dict(
        config='configs/rpn_r50_lvis.py',
        checkpoint='work_dirs/rpn_r50_lvis/latest.pth',
        top=300,
        nms=0.7,
        min_side=8,
    ),
    batch_size=1024,
)
needs = [
    *_base_.needs,
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]

model = dict(
    type='ovd.ViLD',
    text=dict(vocabulary=vocabulary, templates='vild63', encoder=clip),
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
            score_thr=1e-4, nms=dict(type='nms', iou_threshold=0.5), max_per_img=300, mask_thr_binary=0.5
        ),
    ),
)

train_dataloader = dict(
    dataset=dict(
        vocabulary=vocabulary,
        pipeline=[
            *_base_.train_pipeline[:-1],
            dict(type='ovd.LoadRegionEmbeddings', store=region_cache['store'], num_regions=128),
            _base_.train_pipeline[-1],
        ],
    )
)
test_dataloader = dict(dataset=dict(vocabulary=vocabulary))

train_cfg = dict(type='IterBasedTrainLoop', max_iters=180000, val_interval=180000)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.32, momentum=0.9, weight_decay=4e-5))
auto_scale_lr = dict(enable=False, base_batch_size=256)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[162000, 171000], gamma=0.1),
]
