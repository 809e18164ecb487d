"""Keeps a running average of the weights: it is evaluated, and it is what other runs read of a checkpoint.

Add it to the ``_base_`` of a configuration. Each step keeps 0.999 of the average, as GLIP's recipe does.
"""

custom_hooks = [dict(type='EMAHook', momentum=1e-3)]
