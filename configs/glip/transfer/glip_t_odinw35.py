"""ODinW-35 with the weights of GLIP-T, (B) or (C): 35 data sets, queried with their own classes.

    python tools/test.py configs/glip_t_odinw35.py work_dirs/glip_t.safetensors

Li et al., "ELEVATER", NeurIPS 2022. Mean AP with the authors' code: (B) 13.8, (C) 17.8; second hand,
GLIP-T: 19.6, median 5.1. Data sets that are not on disk are named, and the mean then says of how many it
is. Not reproduced: the released weights were not available.
"""

_base_ = ['../glip_t_cap4m.py', '../../_base_/datasets/odinw.py']

test_dataloader = dict(
    dataset=dict(
        _base_.odinw_test,
        parts={
            # As released: the animals of the aquarium have no wordings here.
            name: dict(part, prompts=None if name == 'Aquarium' else _base_.odinw_wordings.get(name))
            for name, part in _base_.odinw35.items()
        },
        pipeline=_base_.test_pipeline,
    )
)
test_evaluator = _base_.odinw_metric
needs = _base_.odinw_needs
