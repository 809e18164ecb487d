"""Objects365 v1 with sampled class names for training; COCO val2017, 80 names, for testing.

Images are resized by Pillow: the short side to 480 .. 800 in training and 800 in testing, the long side to
at most 1333. ``objects365_train``, ``grounding_steps`` and ``phrase_test_steps`` are for configs that
inherit from this.
"""

meta_keys = tuple(
    'img_id img_path ori_shape img_shape scale_factor text tokens_positive tokens_ignored prompt'.split()
)
resize = dict(
    type='RandomChoiceResize',
    scales=[(1333, side) for side in (480, 560, 640, 720, 800)],
    resize_type='FixScaleResize',
    keep_ratio=True,
    backend='pillow',
)
grounding_steps = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='ovd.BuildPrompt'),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
objects365_train = dict(
    type='ovd.OpenVocabularyDataset',
    data_root='data/objects365v1/',
    ann_file='objects365_train.json',
    data_prefix=dict(img='train'),
    vocabulary='objects365',
    degenerate_boxes='drop',
    filter_cfg=dict(filter_empty_gt=False),
    pipeline=[
        *grounding_steps[:-2],
        dict(
            type='ovd.SampleClassNames',
            vocabulary='objects365',
            tokenizer='data/weights/bert_base_uncased',
            max_names=85,
            max_tokens=256,
        ),
        *grounding_steps[-2:],
    ],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=objects365_train,
)
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='FixScaleResize', scale=(800, 1333), keep_ratio=True, backend='pillow'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
phrase_test_steps = [
    *test_pipeline[:-1],
    dict(type='LoadAnnotations', with_bbox=True),  # after the resize: boxes stay those of the original image
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        vocabulary='coco',
        degenerate_boxes='drop',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type='ovd.DetectionMetric', metric='bbox')
# GoldG: captions whose phrases have boxes.
goldg_train = [
    dict(
        type='ovd.GroundingDataset',
        data_root='data/flickr30k/',
        ann_file='final_flickr_separateGT_train_vg.json',
        data_prefix=dict(img='flickr30k_images'),
        bad_regions='drop',
        pipeline=grounding_steps,
    ),
    dict(
        type='ovd.GroundingDataset',
        data_root='data/gqa/',
        ann_file='final_mixed_train_no_coco_vg.json',
        data_prefix=dict(img='images'),
        bad_regions='drop',
        pipeline=grounding_steps,
    ),
]
joined_train = dict(
    _delete_=True,
    type='ConcatDataset',
    ignore_keys=('classes base_classes novel_classes category_ids split ann_file vocabulary_hash'.split()),
    datasets=[objects365_train, *goldg_train],
)
# LVIS v1 zero-shot: 1,203 names, 40 in a prompt, 300 boxes each. Reported are LVIS's own AP over 300 boxes an
# image and, after ``fixed/``, that over 10,000 boxes a class. names_per_prompt=None is faster.
split = 'val'  # 'minival': MDETR's 5,000 images
_lvis = dict(
    val='lvis_v1/annotations/lvis_v1_val.json',
    minival='lvis_v1/annotations/lvis_v1_minival_inserted_image_name.json',
)[split]
lvis_model = dict(
    text=dict(vocabulary='lvis', names_per_prompt=40), test_cfg=dict(max_per_prompt=300, max_per_img=None)
)
lvis_test = dict(
    data_root='data/',
    ann_file=_lvis,
    data_prefix=dict(img='coco'),
    path_key='coco_url',
    vocabulary='lvis',
)
lvis_evaluators = [
    dict(type='ovd.LVISMetric', metric='bbox'),
    dict(type='ovd.LVISMetric', metric='bbox', fixed_ap=True, prefix='fixed'),
]
lvis_needs = [
    dict(
        path='data/' + _lvis,
        what='LVIS v1 annotations and COCO 2017 images',
        how='see data/README.md, section LVIS',
    )
]
needs = dict(
    train=[
        dict(
            path='data/objects365v1/objects365_train.json',
            what='Objects365 v1 annotations and images',
            how='see data/README.md, section Objects365',
        )
    ],
    test=[
        dict(
            path='data/coco/annotations/instances_val2017.json',
            what='COCO 2017 annotations and images',
            how='see data/README.md, section COCO',
        )
    ],
)
