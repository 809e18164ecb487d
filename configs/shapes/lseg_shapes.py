"""LSeg on OV-Shapes, compositional split: segments 'red star' having seen red things and stars, never both.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/lseg_shapes.py
    python tools/test.py configs/lseg_shapes.py work_dirs/lseg_shapes/latest.pth

240 classes, every colour with every noun; the pixels of 48 pairs are ignored in training. Testing asks for
all 240 at once. The image side starts from the tiny CLIP's, which has seen the pairs in captions; the words
are its text tower's and stay fixed. 600 steps of 16 images, minutes on two cores; scores and times are in
docs/results.md.
"""

_base_ = '../_base_/schedules/shapes.py'

default_scope = 'mmseg'
data_root = 'data/shapes/'
vocabulary = 'shapes_pairs'  # 240 pairs, 48 of them unseen: ovd/assets/vocabularies/shapes_pairs.json
label_by = ('attributes.color', 'category')
clip = dict(model='clip_tiny_shapes')
needs = [
    dict(
        path=data_root + 'annotations',
        what='OV-Shapes',
        how='ovd data shapes (tools/make_shapes.py)',
    ),
]

model = dict(
    type='ovd.LSeg',
    text=dict(vocabulary=vocabulary, templates='single', encoder=clip),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[122.77, 116.75, 104.09],
        std=[68.5, 66.63, 70.32],
        bgr_to_rgb=True,
        size_divisor=32,
        seg_pad_val=-1,
    ),
    backbone=dict(type='ovd.ClipResNet', **clip),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    head=dict(in_channels=64, embed_dim=128, temperature=0.07, with_background=True),
    loss_size='features',
    background_weight=0.1,
    align_corners=False,
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='ovd.LoadImage'), dict(type='ovd.LoadSegmentation'), dict(type='PackSegInputs')]
shapes = dict(
    type='ovd.OpenVocabularySegDataset',
    data_root=data_root,
    vocabulary=vocabulary,
    label_by=label_by,
    background='class',
)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        ann_file='annotations/instances_train_all.json',
        data_prefix=dict(img_path='train'),
        unseen_policy='drop',
        pipeline=train_pipeline,
        **shapes,
    ),
)
_tests = {
    split: dict(
        batch_size=16,
        num_workers=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            ann_file=f'annotations/instances_{split}_all.json',
            data_prefix=dict(img_path=split),
            pipeline=test_pipeline,
            test_mode=True,
            **shapes,
        ),
    )
    for split in ('val', 'test')
}
val_dataloader = _tests['val']
test_dataloader = _tests['test']
val_evaluator = dict(type='ovd.SegmentationMetric')
test_evaluator = val_evaluator

max_iters = 600
find_unused_parameters = True  # FPN's convolutions of the three coarser maps, which nobody reads
