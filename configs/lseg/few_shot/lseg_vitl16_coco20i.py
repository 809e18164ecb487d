"""LSeg zero-shot on COCO-20i with ViT-L/16; everything else as in lseg_r101_coco20i.py.

    python tools/train.py configs/lseg_vitl16_coco20i.py
    python tools/test.py configs/lseg_vitl16_coco20i.py work_dirs/lseg_vitl16_coco20i/latest.pth

About 90 GB on one GPU with --amp (estimate): use several, or model.backbone.vit.grad_checkpointing=True.
Published mIoU of folds 0 to 3: 28.1, 27.5, 30.0, 23.2, mean 27.2 (recalled). Not yet trained by us.
"""

_base_ = './lseg_r101_coco20i.py'

model = _base_.vit_l16
