"""PASCAL Context, 59 classes without background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_context59.py

Published mIoU, ViT-B/16: MaskCLIP 25.5 (rerun by FLOSS, ICCV 2025), SCLIP 34.5, NACLIP with PAMR 38.4 (the
README of each repository). Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/context_seg.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
vocabulary = 'context59'
model = dict(text=dict(vocabulary=vocabulary))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_dataloader = dict(
    dataset=dict(vocabulary=vocabulary, background='ignore', pipeline=_base_.photo_pipeline)
)
test_cfg = dict(type='TestLoop')
needs = [
    *_base_.needs,
    dict(
        path='data/weights/clip_vit_b16',
        what="OpenAI's CLIP ViT-B/16",
        how='see data/README.md, section Weights',
    ),
]
