"""LSeg zero-shot on PASCAL-5i with ViT-L/16; everything else as in lseg_r101_pascal5i.py.

    python tools/train.py configs/lseg_vitl16_pascal5i.py
    python tools/test.py configs/lseg_vitl16_pascal5i.py work_dirs/lseg_vitl16_pascal5i/latest.pth

About 90 GB on one GPU with --amp (estimate): use several, or model.backbone.vit.grad_checkpointing=True.
Published mIoU of folds 0 to 3: 61.3, 63.6, 43.1, 41.0, mean 52.3 (recalled). Not yet trained by us.
"""

_base_ = './lseg_r101_pascal5i.py'

_channels = (256, 512, 1024, 1024)
model = dict(
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
