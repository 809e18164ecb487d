"""Detection by class list with the weights of glip_shapes.py: the 24 nouns in one sentence.

    python tools/test.py configs/glip_shapes_detection.py work_dirs/glip_shapes/latest.pth

Li et al., CVPR 2022, in small. Base and novel classes are told apart, but in glip_shapes.py all had boxes.
"""

_base_ = '../../_base_/models/glip_shapes.py'

test_dataloader = dict(dataset=_base_.detection_test)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric='bbox')
