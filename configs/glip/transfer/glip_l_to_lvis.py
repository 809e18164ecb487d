"""LVIS v1 val zero-shot with the weights of GLIP-L: 1,203 names, 40 in a sentence, 300 boxes each.

    python tools/test.py configs/glip_l_to_lvis.py work_dirs/glip_l.safetensors

Li et al., CVPR 2022. Published fixed AP (all, rare, common, frequent): 26.9, 17.1, 23.3, 35.4.
On MDETR's minival (--cfg-options split=minival): 37.3, 28.2, 34.3, 41.5.
LVIS's own AP is reported too; see _base_/datasets/objects365_glip.py.
"""

_base_ = '../glip_l.py'

model = _base_.lvis_model
test_dataloader = dict(dataset=_base_.lvis_test)
test_evaluator = _base_.lvis_evaluators
needs = dict(test=_base_.lvis_needs)
