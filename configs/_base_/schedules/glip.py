"""GLIP's schedule: 64 images a step, AdamW, the pre-trained BERT at a tenth of the rate.

309,000 steps are 30 epochs of Objects365 v1. Source: Li et al., CVPR 2022, Appendix C, and the released
configurations: biases at twice the rate without decay, BERT's included; clipping at norm 1, half precision.
The average of the weights that they track is in ema.py.
"""

_base_ = '../runtime.py'

max_iters = 309_000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='AmpOptimWrapper',
    constructor='ovd.NamedGroupsConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0, custom_keys={'text.model.': dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[206_000, 275_000], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=64)
