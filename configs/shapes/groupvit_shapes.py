"""GroupViT on OV-Shapes: learns from captions alone to segment, and to name what it segmented.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/groupvit_shapes.py
    python tools/test.py configs/groupvit_shapes.py work_dirs/groupvit_shapes/latest.pth
    python tools/test.py configs/groupvit_shapes_retrieval.py work_dirs/groupvit_shapes/latest.pth

Xu et al., CVPR 2022, in small and with what it takes to work on 2,000 images: groups average local features
of the tiny CLIP's convolutions, choose by cosines of standardised keys, and answer for the nouns of the
captions. The tiny CLIP has seen captions only as well. 240 steps of 64 images, minutes on two cores; what
was tried, and the scores, are in docs/groupvit_shapes.md.
"""

_base_ = '../_base_/runtime.py'

default_scope = 'mmseg'
data_root = 'data/shapes/'
vocabulary = 'shapes'  # the 24 nouns: ovd/assets/vocabularies/shapes.json
clip = 'clip_tiny_shapes'
needs = [
    dict(
        path=data_root + 'annotations',
        what='OV-Shapes',
        how='ovd data shapes (tools/make_shapes.py)',
    ),
]

model = dict(
    type='ovd.GroupViT',
    text=dict(vocabulary=vocabulary),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[122.77, 116.75, 104.09],
        std=[68.5, 66.63, 70.32],
        bgr_to_rgb=True,
        size_divisor=8,
        seg_pad_val=-1,
    ),
    image_encoder=dict(
        type='ovd.ConvGrouping',
        stem=dict(model=clip, frozen_stages=2, norm_eval=True),
        dim=128,
        key_dim=64,
        num_groups=(24, 8),
        depths=(0, 1),
        image_size=128,
    ),
    text_encoder=dict(clip=clip),
    image_projection=dict(type='ovd.NormProjection', hidden_dim=256),
    background=True,
    pooling=dict(type='ovd.ForegroundPooling'),
    caption_weight=0.5,
    objectives=[
        dict(type='ovd.Presence', level='tokens', topk=8),
        dict(type='ovd.Presence', level='groups'),
        dict(type='ovd.Coherence', weight=2.0),
    ],
    readout=dict(
        type='ovd.SoftReadout',
        affinity='softmax',
        class_topk=None,
        unit_votes=False,
        assignment='hard',
        background=dict(learned=True, threshold=0.5),
    ),
    test_cfg=dict(mode='whole', keep_groups=True),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.CaptionDataset',
        data_root=data_root,
        ann_file='annotations/captions_train.json',
        data_prefix=dict(img_path='train'),
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='RandomFlip', prob=0.5),
            dict(
                type='ovd.CaptionPrompts',
                count=5,
                context_length=32,
                templates='a photo of a {}.',
                nouns=dict(backend='vocabulary', vocabulary=vocabulary),
                nouns_of='all_captions',
                repeats=False,
            ),
            dict(type='ovd.PackCaptions'),
        ],
    ),
)
_tests = {
    split: dict(
        batch_size=16,
        num_workers=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='ovd.OpenVocabularySegDataset',
            data_root=data_root,
            ann_file=f'annotations/instances_{split}_all.json',
            data_prefix=dict(img_path=split),
            vocabulary=vocabulary,
            background='class',
            pipeline=[
                dict(type='ovd.LoadImage'),
                dict(type='ovd.LoadSegmentation'),
                dict(type='PackSegInputs'),
            ],
            test_mode=True,
        ),
    )
    for split in ('val', 'test')
}
val_dataloader = _tests['val']
test_dataloader = _tests['test']
val_evaluator = [
    dict(type='ovd.SegmentationMetric'),
    dict(type='ovd.GroupingMetric', baseline_groups=8),
]
test_evaluator = val_evaluator
calibration_dataloader = val_dataloader  # for tools/calibrate_thresholds.py; not what is tested on

max_iters = 240
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            'image_encoder.stem': dict(lr_mult=0.25),
            'text_encoder': dict(lr_mult=0.15),
            'text_encoder.token_embedding': dict(lr_mult=0.0, decay_mult=0.0),
        },
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=False, begin=30, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=50))
