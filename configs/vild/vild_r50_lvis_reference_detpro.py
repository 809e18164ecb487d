"""ViLD-ensemble on LVIS v1 as the DetPro code trains it ("ViLD*"); converted DetPro checkpoints load into it.

    python tools/convert_checkpoint.py epoch_20.pth vild_detpro.safetensors \\
        --config configs/vild_r50_lvis_reference_detpro.py
    python tools/test.py configs/vild_r50_lvis_reference_detpro.py vild_detpro.safetensors

Four convolutions and one fully connected layer, one convolution in the RPN, frozen caffe backbone,
temperature 0.007 at test time, regions of distillation normalised apart from the others, all cached regions
in every step, rare classes sampled more often, 20 epochs of 16 images. Released checkpoint: mask AP 25.2,
rare 16.8, common 25.6, frequent 28.5. tools/convert_checkpoint.py --prompts turns its prompt file into class
vectors; give them to model.text.embeddings.

Training starts from SoCo's backbone, FPN and box head (current_mmdetection_Head.pth), which the same
converter turns into the load_from below; not tried by us. Crops keep the middle of a long box and are black
outside the image: tools/cache_clip_regions.py makes them from the proposals of rpn_r50_lvis.py, and
tools/region_store.py import-detpro reads the published ones into the same store.
Source: dyabel/detpro: configs/lvis/detpro_ens_20e.py.
"""

_base_ = './vild_r50_lvis.py'

region_store = 'data/lvis_v1/regions_train_detpro'
region_cache = dict(crops=dict(mode='center_crop', outside='black', rounding='detpro'))
load_from = 'data/weights/soco_r50_fpn.safetensors'
model = dict(
    text=dict(templates='detpro74'),
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(
        frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='caffe'
    ),
    rpn_head=dict(num_convs=1),
    roi_head=dict(
        joint_batch=False,
        bbox_head=dict(
            mode='vild_ensemble',
            trunk=dict(num_fcs=1),
            test_temperature=0.007,
            clip_logits='standardized',
            loss_bbox=dict(type='L1Loss'),
        ),
        mask_head=dict(norm_cfg=None),
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=True))),
)
test_size = (1333, 800)
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', scales=[(1333, side) for side in range(640, 801, 32)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ovd.LoadRegionEmbeddings', store=region_store, num_regions=None),
    dict(type='ovd.PackDetInputs'),
]
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _delete_=True,
        type='ClassBalancedDataset',
        oversample_thr=1e-3,
        dataset=dict(
            type='ovd.OpenVocabularyDataset',
            data_root=_base_.data_root,
            ann_file='lvis_v1/annotations/lvis_v1_train.json',
            data_prefix=dict(img='coco'),
            vocabulary=_base_.vocabulary,
            novel_boxes='drop',
            degenerate_boxes='drop',
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=train_pipeline,
        ),
    ),
)
max_iters = 125000
optim_wrapper = dict(optimizer=dict(lr=0.02, weight_decay=2.5e-5))
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[100000], gamma=0.1),
]
