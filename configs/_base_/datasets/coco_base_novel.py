"""COCO 2017 with the 48 base and 17 novel classes of OVR-CNN, mild scale jitter. See data/README.md.

A leaf adds its words: train_dataloader.dataset.vocabulary and test_dataloader.dataset.vocabulary. Testing
uses the 4,836 images of val2017 that show one of the 65 classes; filter_cfg=None on the test data set uses
all 5,000.
"""

data_root = 'data/coco/'
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.8, 1.25), keep_ratio=True),
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
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017'),
        novel_boxes='drop',
        degenerate_boxes='drop',
        filter_cfg=dict(filter_empty_gt=True),
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
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        degenerate_boxes='drop',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type='ovd.DetectionMetric', metric=['bbox', 'segm'])
needs = [
    dict(
        path=data_root + 'annotations/instances_val2017.json',
        what='COCO 2017 annotations and images',
        how='see data/README.md, section COCO',
    ),
]
