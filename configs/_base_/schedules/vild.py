"""ViLD's schedule: 256 images per step, SGD, the rate cut at 90 and 95 % of the training."""

_base_ = '../runtime.py'

max_iters = 180000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.32, momentum=0.9, weight_decay=4e-5))
auto_scale_lr = dict(enable=False, base_batch_size=256)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        milestones=[max_iters * 9 // 10, max_iters * 19 // 20],
        gamma=0.1,
    ),
]
