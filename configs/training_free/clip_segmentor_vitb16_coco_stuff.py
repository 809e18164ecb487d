"""COCO-Stuff, 171 things and stuff, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_coco_stuff.py

Published mIoU, ViT-B/16: MaskCLIP 17.5 (rerun by FLOSS, ICCV 2025), NACLIP with PAMR 25.7 (its README). Not
yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
data = 'coco_stuff'
vocabulary = 'cocostuff171'
test_pipeline = _base_.photo_pipeline
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(type='TestLoop')
