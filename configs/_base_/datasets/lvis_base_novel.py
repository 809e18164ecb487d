"""LVIS v1, 866 base and 337 novel (rare) classes, 1024 pixels, large-scale jitter. See data/README.md.

The images are COCO's and stay in its folder. A leaf adds its words: train_dataloader.dataset.vocabulary and
test_dataloader.dataset.vocabulary.
"""

data_root = 'data/'
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute',
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ovd.PackDetInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root=data_root,
        ann_file='lvis_v1/annotations/lvis_v1_train.json',
        data_prefix=dict(img='coco'),
        novel_boxes='drop',
        degenerate_boxes='drop',
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
        type='ovd.OpenVocabularyDataset',
        data_root=data_root,
        ann_file='lvis_v1/annotations/lvis_v1_val.json',
        data_prefix=dict(img='coco'),
        degenerate_boxes='drop',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type='ovd.LVISMetric', metric=['bbox', 'segm'])
needs = [
    dict(
        path=data_root + 'lvis_v1/annotations/lvis_v1_val.json',
        what='LVIS v1 annotations and COCO 2017 images',
        how='see data/README.md, section LVIS',
    ),
]
