"""GroupViT ViT-S/16 from scratch on 28.7 million image-caption pairs: CC3M, CC12M and YFCC14M.

    torchrun --nproc-per-node 8 --nnodes 2 tools/train.py configs/groupvit_vits16_gcc_yfcc.py \
        --launcher pytorch --amp
    python tools/test.py configs/groupvit_vits16_voc.py work_dirs/groupvit_vits16_gcc_yfcc/latest.pth

Xu et al., CVPR 2022, with the schedule of the released code: 30 epochs of 4,096 pairs a step, 209,910 steps.
Its authors took two days on 16 V100. A step wants 4,096 different pairs; with 8 GPUs use --cfg-options
train_dataloader.batch_size=512. The learning rate follows the number of pairs per step, the number of steps
(max_iters, end, T_max) does not. About 20 GB per GPU with --amp and 256 pairs, and 4 GB of memory for the
buffers of its 8 loaders (both estimates). Nouns are found by NLTK: pip install nltk, and its data 'punkt_tab'
and 'averaged_perceptron_tagger_eng'; nouns=dict(backend='vocabulary', vocabulary='lvis') works without.
Published: zero-shot ImageNet 43.7 %; mIoU 52.3 on VOC, 22.4 on Context, 24.3 on COCO objects. Not yet trained
by us. Logit scales, positions and learned tokens are not decayed; ..._reference.py decays them.
"""

_base_ = '../_base_/runtime.py'

default_scope = 'mmseg'
data_root = 'data/'
how = 'see data/README.md, section Image-caption pairs'
third = 'yfcc14m'
epoch = 28_663_147 // 4096  # steps
max_iters = 30 * epoch
needs = dict(
    train=[
        dict(path=data_root + 'gcc3m', what='CC3M as tar shards', how=how),
        dict(path=data_root + 'gcc12m', what='CC12M as tar shards', how=how),
        dict(path=data_root + third, what=f'{third} as tar shards', how=how),
    ]
)

model = dict(
    type='ovd.GroupViT',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=16,
        seg_pad_val=-1,
    ),
    image_encoder=dict(
        type='ovd.GroupingTransformer',
        image_size=224,
        patch_size=16,
        dims=(384, 384, 384),
        depths=(6, 3, 3),
        num_heads=(6, 6, 6),
        num_group_tokens=(64, 8, 0),
        num_output_groups=(64, 8),
        drop_path=0.1,
    ),
    text_encoder=dict(width=256, heads=4, layers=12, context_length=77),
    embed_dim=256,
    hidden_dim=4096,
    temperature=0.07,
    multi_label=dict(weight=1.0),
)

train_pipeline = [
    dict(type='ovd.TimmAugment', size=224, auto_augment='rand-m9-mstd0.5-inc1', erase_prob=0.25),
    dict(type='ovd.CaptionPrompts', count=3, templates='clip80', nouns=dict(backend='nltk')),
    dict(type='ovd.PackCaptions'),
]
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    sampler=None,
    dataset=dict(
        type='ovd.CaptionShards',
        shards=[data_root + 'gcc3m/*.tar', data_root + 'gcc12m/*.tar', f'{data_root}{third}/*.tar'],
        shuffle_buffer=10000,
        exact_resume=False,
        pipeline=train_pipeline,
    ),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.6e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            name: dict(decay_mult=0.0)
            for name in (
                'logit_scale',
                'positions',
                'positional_embedding',
                'group_tokens',
                'token_embedding',
            )
        },
    ),
)
# Both from the first step on: as timm does it, the cosine's clock runs during the warm-up.
param_scheduler = [
    dict(type='LinearLR', start_factor=4e-6 / 1.6e-3, by_epoch=False, end=2 * epoch),
    dict(type='CosineAnnealingLR', eta_min_ratio=4e-5 / 1.6e-3, by_epoch=False, T_max=max_iters),
]
auto_scale_lr = dict(enable=True, base_batch_size=4096)
default_hooks = dict(checkpoint=dict(interval=epoch, max_keep_ckpts=2))
