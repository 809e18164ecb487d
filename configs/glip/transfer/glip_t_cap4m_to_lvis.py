"""LVIS v1 val zero-shot with the weights of GLIP-T: 1,203 names, 40 in a sentence, 300 boxes each.

    python tools/test.py configs/glip_t_cap4m_to_lvis.py work_dirs/glip_t.safetensors

Li et al., CVPR 2022. Published fixed AP (all, rare, common, frequent): 17.2, 10.1, 12.5, 25.5.
On MDETR's minival (--cfg-options split=minival): 26.0, 20.8, 21.4, 31.0.
LVIS's own AP is reported too; see _base_/datasets/objects365_glip.py.
"""

_base_ = '../glip_t_cap4m.py'

model = _base_.lvis_model
test_dataloader = dict(dataset=_base_.lvis_test)
test_evaluator = _base_.lvis_evaluators
needs = dict(test=_base_.lvis_needs)
