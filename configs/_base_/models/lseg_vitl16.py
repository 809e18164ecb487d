"""LSeg with ViT-L/16 and the words of CLIP ViT-B/32; a config that inherits from this adds its words."""

clip = dict(model='data/weights/clip_vit_b32')
channels = (256, 512, 1024, 1024)
model = dict(
    type='ovd.LSeg',
    text=dict(templates='name', encoder=clip),
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
        channels=channels,
        readout='project',
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/vit_large_patch16_384.safetensors'),
    ),
    neck=dict(type='ovd.DPTFusion', in_channels=channels, out_channels=256, norm_cfg=dict(type='SyncBN')),
    head=dict(in_channels=256, embed_dim=512, temperature=0.07),
    align_corners=True,
    test_cfg=dict(mode='slide', crop_size=480, stride=320),
)
# The evaluator of the released code: six scales, mirror images.
lseg_evaluation = dict(
    _delete_=True,
    mode='lseg',
    base_size=520,
    crop_size=480,
    scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip=True,
)
model_needs = [
    dict(path=clip['model'], what="OpenAI's CLIP", how='see data/README.md, section Weights'),
]
