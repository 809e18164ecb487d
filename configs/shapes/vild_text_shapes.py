"""ViLD-text on OV-Shapes: the same detector without distillation, the control of the quickstart.

    python tools/train.py configs/vild_text_shapes.py
    python tools/test.py configs/vild_text_shapes.py work_dirs/vild_text_shapes/latest.pth

Needs no region embeddings. It finds base classes and few of the novel ones: docs/results.md.
"""

_base_ = './vild_shapes.py'

max_iters = 400
model = dict(roi_head=dict(bbox_head=dict(mode='vild_text')))
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
