"""Minutes on two CPU cores: AdamW, warm-up, cosine; a checkpoint every 50 steps."""

_base_ = '../runtime.py'

max_iters = 400
warm_up = 50
lr = 2e-3
max_norm = 5.0
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=max_norm),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=warm_up),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=warm_up, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=50))
