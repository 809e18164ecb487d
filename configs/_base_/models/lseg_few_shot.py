"""LSeg with ResNet-101 that asks for one class against 'others'; ``vit_l16`` replaces its image side."""

clip = dict(model='data/weights/clip_vit_b32')
model = dict(
    type='ovd.LSeg',
    text=dict(templates='raw_name', encoder=clip),
    pair_with='others',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=32,
        seg_pad_val=-1,
    ),
    backbone=dict(
        type='ovd.ResNetPyramid',
        model='resnet101',
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/resnet101.pth'),
    ),
    neck=dict(
        type='ovd.DPTFusion',
        in_channels=(256, 512, 1024, 2048),
        out_channels=256,
        norm_cfg=dict(type='SyncBN'),
    ),
    head=dict(in_channels=256, embed_dim=512, temperature=0.07),
    align_corners=True,
    test_cfg=dict(mode='whole'),
)
sync_bn = 'torch'  # on several GPUs the ResNet's norms too
_channels = (256, 512, 1024, 1024)
vit_l16 = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type='ovd.DPTViT',
        vit=dict(type='ovd.TimmViT', model='vit_large_patch16_384', grad_checkpointing=False),
        hooks=(5, 11, 17, 23),
        channels=_channels,
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/vit_large_patch16_384.safetensors'),
    ),
    neck=dict(in_channels=_channels),
)
model_needs = [
    dict(path=clip['model'], what="OpenAI's CLIP", how='see data/README.md, section Weights'),
]
