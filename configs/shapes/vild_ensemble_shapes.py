"""ViLD-ensemble on OV-Shapes: distillation in a head of its own, scores combined at test time.

    python tools/train.py configs/vild_ensemble_shapes.py
    python tools/test.py configs/vild_ensemble_shapes.py work_dirs/vild_ensemble_shapes/latest.pth

A variant for comparison; at this size it does not beat the shared head of vild_shapes.py on novel classes.
"""

_base_ = './vild_shapes.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_ensemble')))
