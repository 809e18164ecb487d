"""GLIP-T (B): as glip_t_a_o365.py, with deep fusion of image and text.

    python tools/train.py configs/glip_t_b_o365.py

Li et al., CVPR 2022. Published zero-shot AP on COCO val2017: 44.9.
"""

_base_ = [
    '../_base_/models/glip_t.py',
    '../_base_/datasets/objects365_glip.py',
    '../_base_/schedules/glip.py',
]

needs = dict(always=_base_.model_needs)
model = dict(bbox_head=_base_.deep_fusion)
