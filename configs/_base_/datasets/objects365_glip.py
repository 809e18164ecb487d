"""Objects365 v1 with sampled class names for training; COCO val2017, 80 names, for testing.

Images are resized by Pillow: the short side to 480 .. 800 in training and 800 in testing, the long side to at
most 1333. ``objects365_train``, ``grounding_steps`` and ``phrase_test_steps`` are there for leaves.
"""

meta_keys = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'text',
    'tokens_positive',
    'tokens_ignored',
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
        *grounding_steps[:-1],
        dict(
            type='ovd.SampleClassNames',
            vocabulary='objects365',
            tokenizer='data/weights/bert_base_uncased',
            max_names=85,
            max_tokens=256,
        ),
        grounding_steps[-1],
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
needs = [
    dict(
        path='data/weights/bert_base_uncased',
        what='configuration, vocabulary and, for training, weights of bert-base-uncased',
        how='copy config.json, tokenizer.json (or vocab.txt) and model.safetensors of that model there',
    ),
]
