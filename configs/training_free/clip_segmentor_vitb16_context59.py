"""PASCAL Context, 59 classes without background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_context59.py

Published mIoU, ViT-B/16: MaskCLIP 25.5 (rerun by FLOSS, ICCV 2025), SCLIP 34.5, NACLIP with PAMR 38.4 (the
README of each repository). Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
data = 'context'
vocabulary = 'context59'
test_pipeline = _base_.photo_pipeline
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_dataloader = dict(dataset=dict(background='ignore'))
test_cfg = dict(type='TestLoop')
