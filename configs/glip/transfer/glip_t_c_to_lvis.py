"""LVIS v1 val zero-shot with the weights of GLIP-T (C): 1,203 names, 40 in a sentence, 300 boxes each.

    python tools/test.py configs/glip_t_c_to_lvis.py work_dirs/glip_t_c.safetensors

Li et al., CVPR 2022. Published fixed AP (all, rare, common, frequent): 16.5, 7.5, 11.6, 26.1.
On MDETR's minival (--cfg-options split=minival): 24.9, 17.7, 19.5, 31.0.
LVIS's own AP is reported too; see _base_/datasets/objects365_glip.py.
"""

_base_ = '../glip_t_c_o365_goldg.py'

model = _base_.lvis_model
test_dataloader = dict(dataset=_base_.lvis_test)
test_evaluator = _base_.lvis_evaluators
needs = dict(test=_base_.lvis_needs)
