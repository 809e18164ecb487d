"""A second tiny CLIP for OV-Shapes, whose image tower is a transformer with patches of 8 pixels.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/shapes/clip_tiny_vit_shapes.py
    python tools/test.py configs/shapes/clip_tiny_vit_shapes.py work_dirs/clip_tiny_vit_shapes/latest.pth

For what happens to patches when the last attention of a transformer changes, a ResNet is no help. The
recipe of clip_tiny_shapes.py with 300 more steps and a lower rate, about 20 CPU minutes;
ovd/assets/clip_tiny_vit_shapes is the result.
"""

_base_ = './clip_tiny_shapes.py'

max_iters = 1300
model = dict(model='ovd/assets/clip_tiny_vit_shapes/open_clip_config.json', channels_last=False)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(lr=1.5e-3), paramwise_cfg=dict(custom_keys={'class_embedding': dict(decay_mult=0.0)})
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 100, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, eta_min_ratio=0.02, T_max=max_iters),
]
