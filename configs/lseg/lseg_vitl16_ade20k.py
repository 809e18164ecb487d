"""LSeg on ADE20K: ViT-L/16, words of CLIP ViT-B/32, 150 classes.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_ade20k.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_ade20k.py work_dirs/lseg_vitl16_ade20k/latest.pth

Li et al., ICLR 2022, as released: 240 epochs, 8 GPUs x 4 crops of 480 pixels, two batches to a step, SGD with
lr 0.001 for the ViT and ten times that for the decoder, polynomial decay. Evaluation in windows at six
scales, with mirror images. About 20 GB per GPU with --amp (estimate), less with
model.backbone.vit.grad_checkpointing=True. The ImageNet weights of the ViT go to data/weights, see
data/README.md, section Weights; testing needs none.
Published: 82.46 pixAcc, 45.37 mIoU (recalled), with class names cut to their first word: for an official
checkpoint use lseg_vitl16_ade20k_reference.py. Not yet trained by us.
"""

_base_ = ['../_base_/datasets/ade20k_seg.py', '../_base_/runtime.py']

default_scope = 'mmseg'
vocabulary = 'ade150'  # ovd/assets/vocabularies/ade150.json
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
    test_cfg=dict(
        mode='lseg', base_size=520, crop_size=480, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True
    ),
)

train_dataloader = dict(batch_size=4, dataset=dict(vocabulary=vocabulary))
val_dataloader = dict(dataset=dict(vocabulary=vocabulary))
test_dataloader = dict(dataset=dict(vocabulary=vocabulary))

max_iters = 151600  # 240 epochs of 20,210 pictures in batches of 32
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    accumulative_counts=2,
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'neck.': dict(lr_mult=10.0), 'head.': dict(lr_mult=10.0)}),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)]
