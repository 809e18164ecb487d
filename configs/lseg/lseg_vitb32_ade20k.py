"""LSeg on ADE20K: ViT-B/32, words of CLIP ViT-B/32, 150 classes.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitb32_ade20k.py --launcher pytorch
    python tools/test.py configs/lseg_vitb32_ade20k.py work_dirs/lseg_vitb32_ade20k/latest.pth

Li et al., ICLR 2022, the network of the paper's ablations; recipe of lseg_vitl16_ade20k.py. With
--cfg-options model.head.regularization.kind=bottleneck model.head.regularization.depth=2
it is the best of them. About 6 GB per GPU (estimate).
Published: 79.70 pixAcc, 37.83 mIoU (recalled), 39.79 with that block (recalled); users of the released code
report 78.9 and 33.7 (isl-org/lang-seg, issue 32). Not yet trained by us.
"""

_base_ = './lseg_vitl16_ade20k.py'

channels = (96, 192, 384, 768)
model = dict(
    backbone=dict(
        vit=dict(model='vit_base_patch32_384'),
        hooks=(2, 5, 8, 11),
        init_cfg=dict(checkpoint='data/weights/vit_base_patch32_384.safetensors'),
    )
)
