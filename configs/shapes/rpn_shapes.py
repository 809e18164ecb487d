"""Class-agnostic region proposals on OV-Shapes, trained on the boxes of the base classes alone.

    python tools/train.py configs/rpn_shapes.py

First step of ViLD on OV-Shapes: its best boxes are embedded by CLIP (tools/cache_clip_regions.py
configs/vild_shapes.py) and its weights start the detector. 200 steps of 16 images, a minute on two cores.
Expected: recall at IoU 0.5 of the 16 best boxes about .9, novel classes included.
"""

_base_ = [
    '../_base_/models/slim_rpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes.py',
]

max_iters = 200
lr = 1e-3
channels_last = True  # convolutions on a CPU are faster so

train_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(_delete_=True, type='ovd.ProposalRecall', proposal_nums=(8, 16, 50))
test_evaluator = val_evaluator
