"""Detection and masks by class list with the weights of glipv2_shapes.py: the 24 nouns in one sentence.

    python tools/test.py configs/glipv2_shapes_masks.py work_dirs/glipv2_shapes/latest.pth

Zhang et al., NeurIPS 2022, in small. In training the 8 novel nouns had boxes in captions, and no masks.
"""

_base_ = './glipv2_shapes.py'

model = dict(text=dict(vocabulary='shapes'), masks_at_test=True)
test_dataloader = dict(dataset=_base_.detection_test)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric=['bbox', 'segm'])
