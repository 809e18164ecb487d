"""ADE20K, 150 classes, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_ade150.py

Published mIoU, ViT-B/16: MaskCLIP 14.2 (rerun by FLOSS, ICCV 2025), SCLIP 16.5, NACLIP with PAMR 19.1 (the
README of each repository). Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
data = 'ade'
vocabulary = 'ade150'
test_pipeline = _base_.photo_pipeline
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(type='TestLoop')
