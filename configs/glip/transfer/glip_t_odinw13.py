"""ODinW-13 with the weights of GLIP-T, (B) or (C): 13 data sets, queried with their own classes.

    python tools/test.py configs/glip_t_odinw13.py work_dirs/glip_t.safetensors

Li et al., CVPR 2022. Mean AP with the authors' code and no wordings: (B) 31.8, (C) 39.2. The validation
parts are read; data sets that are not on disk are named, and the mean then says of how many it is. Not
reproduced: the released weights were not available.
"""

_base_ = ['../glip_t_cap4m.py', '../../_base_/datasets/odinw.py']

test_dataloader = dict(
    dataset=dict(
        _base_.odinw_test,
        parts={name: _base_.odinw35[name] for name in _base_.odinw13},
        pipeline=_base_.test_pipeline,
    )
)
test_evaluator = _base_.odinw_metric
needs = _base_.odinw_needs
