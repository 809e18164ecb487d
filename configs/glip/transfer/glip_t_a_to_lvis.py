"""LVIS v1 val zero-shot with the weights of GLIP-T (A): 1,203 names, 40 in a sentence, 300 boxes each.

    python tools/test.py configs/glip_t_a_to_lvis.py work_dirs/glip_t_a.safetensors

Li et al., CVPR 2022. Published fixed AP (all, rare, common, frequent): 12.3, 6.0, 8.0, 19.4.
On MDETR's minival (--cfg-options split=minival): 18.5, 14.2, 13.9, 23.4.
LVIS's own AP is reported too; see _base_/datasets/objects365_glip.py.
"""

_base_ = '../glip_t_a_o365.py'

model = _base_.lvis_model
test_dataloader = dict(dataset=_base_.lvis_test)
test_evaluator = _base_.lvis_evaluators
needs = dict(test=_base_.lvis_needs)
