"""GLIP on OV-Shapes: grounds the phrases of captions, and finds classes by a list of names.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/glip_shapes.py
    python tools/test.py configs/glip_shapes.py work_dirs/glip_shapes/latest.pth
    python tools/test.py configs/glip_shapes_detection.py work_dirs/glip_shapes/latest.pth

Li et al., CVPR 2022, in small: both towers of the tiny CLIP, which has seen captions only, three levels, two
blocks of deep fusion with plain convolutions. All nouns have boxes; a third of the samples are class lists.
No flips: captions say left and right. 400 steps of 16 pictures, minutes on two cores; scores and times are in
docs/glip_shapes.md.
"""

_base_ = '../../_base_/runtime.py'

data_root = 'data/shapes/'
nouns = (
    'circle, star, cross, ring, house, tree, flower, key, crown, fork, comb, window, sun, umbrella, hammer, '
    'bone, heart, crescent, fish, anchor, butterfly, spiral, magnet, cactus'
)
clip = 'clip_tiny_shapes'
needs = [
    dict(path=data_root + 'annotations', what='OV-Shapes', how='ovd data shapes (tools/make_shapes.py)'),
]

model = dict(
    type='ovd.GLIP',
    text=dict(
        vocabulary=nouns,
        encoder=dict(type='clip', model=clip, features='phrases', templates='a photo of {article} {}.'),
    ),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[122.77, 116.75, 104.09],
        std=[68.5, 66.63, 70.32],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='ovd.ClipResNet', model=clip, out_indices=(1, 2, 3)),
    neck=dict(type='FPN', in_channels=[128, 256, 512], out_channels=64, num_outs=3),
    bbox_head=dict(
        channels=64,
        num_blocks=2,
        fusion=dict(embed_dims=128, num_heads=4, dropout=0.0, initial_scale=0.5),
        text_layer=dict(num_heads=4, hidden_channels=192, dropout=0.0),
        dyhead=dict(deformable=False),
        strides=(8, 16, 32),
        anchor_scale=4.0,
        log_scale=-1.5,
    ),
    test_cfg=dict(score_thr=0.01, nms_pre=200, max_per_img=100),
)

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
phrase_steps = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
class_list_steps = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='ovd.SampleClassNames', vocabulary=nouns, tokenizer=clip, max_names=24),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        ignore_keys=[
            'classes',
            'base_classes',
            'novel_classes',
            'category_ids',
            'split',
            'ann_file',
            'vocabulary_hash',
        ],
        datasets=[
            dict(
                type='ovd.GroundingDataset',
                data_root=data_root,
                ann_file='annotations/phrases_train.jsonl',
                data_prefix=dict(img='train'),
                pipeline=phrase_steps,
            ),
            dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='ovd.OpenVocabularyDataset',
                    data_root=data_root,
                    ann_file='annotations/instances_train_all.json',
                    data_prefix=dict(img='train'),
                    vocabulary=nouns,
                    pipeline=class_list_steps,
                ),
            ),
        ],
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.GroundingDataset',
        data_root=data_root,
        ann_file='annotations/phrases_val.jsonl',
        data_prefix=dict(img='val'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=1,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.GroundingDataset',
        data_root=data_root,
        ann_file='annotations/phrases_test.jsonl',
        data_prefix=dict(img='test'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type='ovd.PhraseRecall')
test_evaluator = val_evaluator

max_iters = 400
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'backbone': dict(lr_mult=0.3)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
channels_last = True  # convolutions on a CPU are faster so
default_hooks = dict(checkpoint=dict(interval=max_iters))
