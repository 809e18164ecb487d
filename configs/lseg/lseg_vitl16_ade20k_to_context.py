"""Transfer to PASCAL Context: lseg_vitl16_ade20k.py queried with 59 other words, without fine-tuning.

    python tools/test.py configs/lseg_vitl16_ade20k_to_context.py work_dirs/lseg_vitl16_ade20k/latest.pth

The model has no background, so pixels that the data set calls background are not scored. About 4 GB
(estimate). No published score.
"""

_base_ = './lseg_vitl16_ade20k.py'

data = 'context'
vocabulary = 'context59'
test_dataloader = dict(dataset=dict(background='ignore'))
