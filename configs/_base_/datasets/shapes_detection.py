"""OV-Shapes with boxes and masks of the 16 base nouns for training, all 24 nouns for testing."""

data_root = 'data/shapes/'
vocabulary = 'shapes'  # the 24 nouns, 8 of them novel: ovd/assets/vocabularies/shapes.json
region_store = data_root + 'regions_train'
needs = [
    dict(
        path=data_root + 'annotations',
        what='OV-Shapes',
        how='ovd data shapes (tools/make_shapes.py)',
    ),
]
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
_common = dict(type='ovd.OpenVocabularyDataset', data_root=data_root, vocabulary=vocabulary)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        _common,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        pipeline=[
            *train_pipeline[:-1],
            dict(type='ovd.LoadRegionEmbeddings', store=region_store, num_regions=8),
            train_pipeline[-1],
        ],
    ),
)
_tests = {
    split: dict(
        batch_size=16,
        num_workers=1,
        drop_last=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            _common,
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=split),
            pipeline=test_pipeline,
            test_mode=True,
        ),
    )
    for split in ('val', 'test')
}
val_dataloader = _tests['val']
test_dataloader = _tests['test']
val_evaluator = dict(type='ovd.DetectionMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
