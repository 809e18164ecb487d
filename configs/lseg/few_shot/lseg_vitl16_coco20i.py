"""LSeg zero-shot on COCO-20i with ViT-L/16; everything else as in lseg_r101_coco20i.py.

    python tools/train.py configs/lseg_vitl16_coco20i.py
    python tools/test.py configs/lseg_vitl16_coco20i.py work_dirs/lseg_vitl16_coco20i/latest.pth

About 90 GB on one GPU with --amp (estimate): use several, or model.backbone.vit.grad_checkpointing=True.
Published mIoU of folds 0 to 3: 28.1, 27.5, 30.0, 23.2, mean 27.2 (recalled). Not yet trained by us.
"""

_base_ = './lseg_r101_coco20i.py'

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
