"""VOC 2012, 20 classes and background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_voc21.py

Background is what no word describes: the best word's probability, the softmax being over the 20 words, must
reach the threshold. Published mIoU, ViT-B/16: SCLIP 59.6, NACLIP with PAMR 64.1 (the README of each
repository), both with lists of words for background, which model.background.names takes; CorrCLIP-B with a
mask generator 76.2. Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/voc_seg.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
vocabulary = 'voc'
model = dict(text=dict(vocabulary=vocabulary), background=dict(threshold=0.4))
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
