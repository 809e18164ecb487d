"""GLIP-T (C): deep fusion, trained on Objects365 and the captions of GoldG (Flickr30k, Visual Genome, GQA).

    python tools/train.py configs/glip_t_c_o365_goldg.py

Li et al., CVPR 2022. Published zero-shot AP on COCO val2017: 46.7.
"""

_base_ = [
    '../_base_/models/glip_t.py',
    '../_base_/datasets/objects365_glip.py',
    '../_base_/schedules/glip.py',
]

needs = dict(always=_base_.model_needs)
model = dict(bbox_head=_base_.deep_fusion)
train_dataloader = dict(dataset=_base_.joined_train)
