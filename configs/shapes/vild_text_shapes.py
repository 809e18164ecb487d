"""ViLD-text on OV-Shapes: the same detector without distillation, the control of the quickstart.

    python tools/train.py configs/vild_text_shapes.py
    python tools/test.py configs/vild_text_shapes.py work_dirs/vild_text_shapes/latest.pth

Needs no region embeddings. It finds base classes and few of the novel ones: docs/results.md.
"""

_base_ = './vild_shapes.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_text')))
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))

max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
