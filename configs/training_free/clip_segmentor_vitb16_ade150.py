"""ADE20K, 150 classes, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_ade150.py

Published mIoU, ViT-B/16: MaskCLIP 14.2 (rerun by FLOSS, ICCV 2025), SCLIP 16.5, NACLIP with PAMR 19.1 (the
README of each repository). Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/ade20k_seg.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
vocabulary = 'ade150'
model = dict(text=dict(vocabulary=vocabulary))
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
