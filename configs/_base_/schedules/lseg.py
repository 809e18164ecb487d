"""LSeg's optimiser: SGD, ten times the rate for the decoder, polynomial decay to ``decay_iters``."""

_base_ = '../runtime.py'

default_scope = 'mmseg'
max_iters = 40000
val_interval = max_iters
decay_iters = max_iters
lr = 0.001
images_per_step = 32
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'neck.': dict(lr_mult=10.0), 'head.': dict(lr_mult=10.0)}),
)
auto_scale_lr = dict(enable=False, base_batch_size=images_per_step)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=decay_iters)]
