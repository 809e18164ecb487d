"""LSeg zero-shot on FSS-1000 with ViT-L/16; everything else as in lseg_r101_fss1000.py.

    python tools/train.py configs/lseg_vitl16_fss1000.py
    python tools/test.py configs/lseg_vitl16_fss1000.py work_dirs/lseg_vitl16_fss1000/latest.pth

About 90 GB on one GPU with --amp (estimate): use several, or model.backbone.vit.grad_checkpointing=True.
Published mIoU: 87.8 (isl-org/lang-seg, README). Not yet trained by us.
"""

_base_ = './lseg_r101_fss1000.py'

model = _base_.vit_l16
