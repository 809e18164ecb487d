"""PASCAL Context, 59 classes and background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_context60.py

Published mIoU, ViT-B/16: NACLIP with PAMR 35.0 (its README). Not yet run by us, for want of weights.
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
model = dict(text=dict(vocabulary=vocabulary), background=dict(threshold=0.1))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(type='TestLoop')
