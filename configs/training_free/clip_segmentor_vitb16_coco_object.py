"""COCO-Object, 80 things and background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_coco_object.py

Published mIoU, ViT-B/16: SCLIP 33.5, NACLIP with PAMR 36.2 (the README of each repository). Not yet run by
us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
data = 'coco_object'
vocabulary = 'coco'
test_pipeline = _base_.photo_pipeline
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary), background=dict(threshold=0.2))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(type='TestLoop')
