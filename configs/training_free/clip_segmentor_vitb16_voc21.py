"""VOC 2012, 20 classes and background, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_voc21.py

Background is what no word describes: the best word's probability, the softmax being over the 20 words, must
reach the threshold. Published mIoU, ViT-B/16: SCLIP 59.6, NACLIP with PAMR 64.1 (the README of each
repository), both with lists of words for background, which model.background.names takes; CorrCLIP-B with a
mask generator 76.2. Not yet run by us, for want of weights.
"""

_base_ = [
    '../_base_/models/clip_vitb16_dense.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
data = 'voc'
vocabulary = 'voc'
test_pipeline = _base_.photo_pipeline
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary), background=dict(threshold=0.4))
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict(type='TestLoop')
