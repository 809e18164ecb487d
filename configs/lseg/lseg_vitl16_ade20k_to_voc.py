"""Transfer to PASCAL VOC 2012: lseg_vitl16_ade20k.py queried with 20 other words, without fine-tuning.

    python tools/test.py configs/lseg_vitl16_ade20k_to_voc.py work_dirs/lseg_vitl16_ade20k/latest.pth

The model has no background, so pixels that the data set calls background are not scored. About 4 GB
(estimate). No published score.
"""

_base_ = './lseg_vitl16_ade20k.py'

data = 'voc'
vocabulary = 'voc'
test_dataloader = dict(dataset=dict(background='ignore'))
