"""As glip_t_odinw13.py, with hand-written wordings for six data sets: "hand of a person".

    python tools/test.py configs/glip_t_odinw13_worded.py work_dirs/glip_t.safetensors

Li et al., CVPR 2022, Tables 10 to 14. Published mean AP: GLIP-T 46.5, (C) 44.4; (B) 33.2, where only
rabbits and mushrooms are worded. Not reproduced: the released weights were not available.
"""

_base_ = ['../glip_t_cap4m.py', '../../_base_/datasets/odinw.py']

test_dataloader = dict(
    dataset=dict(
        _base_.odinw_test,
        parts={
            name: dict(_base_.odinw35[name], prompts=_base_.odinw_wordings.get(name))
            for name in _base_.odinw13
        },
        pipeline=_base_.test_pipeline,
    )
)
test_evaluator = _base_.odinw_metric
needs = _base_.odinw_needs
