"""LSeg zero-shot on PASCAL-5i with ViT-L/16; everything else as in lseg_r101_pascal5i.py.

    python tools/train.py configs/lseg_vitl16_pascal5i.py
    python tools/test.py configs/lseg_vitl16_pascal5i.py work_dirs/lseg_vitl16_pascal5i/latest.pth

About 90 GB on one GPU with --amp (estimate): use several, or model.backbone.vit.grad_checkpointing=True.
Published mIoU of folds 0 to 3: 61.3, 63.6, 43.1, 41.0, mean 52.3 (recalled). Not yet trained by us.
"""

_base_ = './lseg_r101_pascal5i.py'

model = _base_.vit_l16
