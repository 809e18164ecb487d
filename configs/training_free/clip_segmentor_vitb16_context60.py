"""PASCAL Context, 59 classes and background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_context60.py

Published mIoU, ViT-B/16: NACLIP with PAMR 35.0 (its README). Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/context_seg.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
vocabulary = 'context59'
model = dict(text=dict(vocabulary=vocabulary), background=dict(threshold=0.1))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_dataloader = dict(dataset=dict(vocabulary=vocabulary, pipeline=_base_.photo_pipeline))
test_cfg = dict(type='TestLoop')
needs = [
    *_base_.needs,
    dict(
        path='data/weights/clip_vit_b16',
        what="OpenAI's CLIP ViT-B/16",
        how='see data/README.md, section Weights',
    ),
]
