"""LSeg on COCO-Stuff: 171 words, things and stuff, ViT-L/16.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_coco_stuff.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_coco_stuff.py work_dirs/lseg_vitl16_coco_stuff/latest.pth

The model of Li et al., ICLR 2022, and its optimiser; the length of training is our choice, the paper has no
such experiment and no score. About 20 GB per GPU with --amp (estimate). Not yet trained by us.
"""

_base_ = ['../_base_/datasets/coco_stuff_seg.py', '../_base_/runtime.py']

default_scope = 'mmseg'
vocabulary = 'cocostuff171'  # ovd/assets/vocabularies/cocostuff171.json
needs = [
    *_base_.needs,
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]

model = dict(
    type='ovd.LSeg',
    text=dict(vocabulary=vocabulary, templates='name', encoder=dict(model='data/weights/clip_vit_b32')),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        size_divisor=32,
        pad_val=-1,  # black
        seg_pad_val=-1,
    ),
    backbone=dict(
        type='ovd.DPTViT',
        vit=dict(type='ovd.TimmViT', model='vit_large_patch16_384', grad_checkpointing=False),
        hooks=(5, 11, 17, 23),
        channels=(256, 512, 1024, 1024),
        readout='project',
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/vit_large_patch16_384.safetensors'),
    ),
    neck=dict(
        type='ovd.DPTFusion',
        in_channels=(256, 512, 1024, 1024),
        out_channels=256,
        norm_cfg=dict(type='SyncBN'),
    ),
    head=dict(in_channels=256, embed_dim=512, temperature=0.07),
    align_corners=True,
    test_cfg=dict(mode='slide', crop_size=480, stride=320),
)

train_dataloader = dict(batch_size=4, dataset=dict(vocabulary=vocabulary))
val_dataloader = dict(dataset=dict(vocabulary=vocabulary))
test_dataloader = dict(dataset=dict(vocabulary=vocabulary))

max_iters = 80000  # 22 epochs of 118,287 pictures in batches of 32
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'neck.': dict(lr_mult=10.0), 'head.': dict(lr_mult=10.0)}),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)]
