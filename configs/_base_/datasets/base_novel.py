"""Base classes with boxes and novel ones without, 1024 pixels; ``data`` is 'lvis' or 'coco'.

LVIS v1: 866 base and 337 novel (rare) classes, large-scale jitter; the images are COCO's and stay in its
folder. COCO 2017: the 48 base and 17 novel classes of OVR-CNN, mild jitter; testing uses the 4,836 images
of val2017 that show one of the 65 classes, filter_cfg=None in the test data set all 5,000. See
data/README.md.
"""

data = 'lvis'
_sets = dict(
    lvis=dict(
        root='data/',
        vocabulary='lvis',
        jitter=(0.1, 2.0),
        train=dict(ann_file='lvis_v1/annotations/lvis_v1_train.json', data_prefix=dict(img='coco')),
        test=dict(ann_file='lvis_v1/annotations/lvis_v1_val.json', data_prefix=dict(img='coco')),
        evaluator='ovd.LVISMetric',
        store='lvis_v1/regions_train',
        needs=('LVIS v1 annotations and COCO 2017 images', 'LVIS'),
    ),
    coco=dict(
        root='data/coco/',
        vocabulary='coco_ov',
        jitter=(0.8, 1.25),
        train=dict(
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017'),
            filter_cfg=dict(filter_empty_gt=True),
        ),
        test=dict(
            ann_file='annotations/instances_val2017.json',
            data_prefix=dict(img='val2017'),
            filter_cfg=dict(filter_empty_gt=True),
        ),
        evaluator='ovd.DetectionMetric',
        store='regions_train',
        needs=('COCO 2017 annotations and images', 'COCO'),
    ),
)
_set = _sets[data]
data_root = _set['root']
vocabulary = _set['vocabulary']
test_size = (1024, 1024)
region_store = data_root + _set['store']
train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=_set['jitter'], keep_ratio=True),
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
    dict(type='Resize', scale=test_size, keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
_common = dict(type='ovd.OpenVocabularyDataset', data_root=data_root, vocabulary=vocabulary)
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        _common,
        **_set['train'],
        novel_boxes='drop',
        degenerate_boxes='drop',
        pipeline=[
            *train_pipeline[:-1],
            dict(type='ovd.LoadRegionEmbeddings', store=region_store, num_regions=128),
            train_pipeline[-1],
        ],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(_common, **_set['test'], degenerate_boxes='drop', pipeline=test_pipeline, test_mode=True),
)
test_evaluator = dict(type=_set['evaluator'], metric=['bbox', 'segm'])
region_cache = dict(
    store=region_store,
    dataset=dict(
        ann_file=data_root + _set['train']['ann_file'], images=data_root + _set['train']['data_prefix']['img']
    ),
    crops=dict(mode='warp', scales=(1.0, 1.5)),
    proposals=dict(
        config=f'configs/rpn_r50_{data}.py',
        checkpoint=f'work_dirs/rpn_r50_{data}/latest.pth',
        top=300,
        nms=0.7,
        min_side=8,
    ),
    batch_size=1024,
)
_what, _section = _set['needs']
_how = f'see data/README.md, section {_section}'
needs = dict(
    train=[dict(path=data_root + _set['train']['ann_file'], what=_what, how=_how)],
    test=[dict(path=data_root + _set['test']['ann_file'], what=_what, how=_how)],
)
