"""GLIP-T (A) as mmdet's port computes it: nearest upsampling in DyHead, candidates ranked by probability.

    python tools/test.py configs/glip_t_a_o365_reference_mmdet.py work_dirs/glip_t_a.safetensors

mmdet reports 43.0 AP on COCO val2017. A deep model takes the same two changes.
"""

_base_ = './glip_t_a_o365.py'

model = dict(bbox_head=dict(dyhead=dict(upsample='nearest')), test_cfg=dict(ranking='probability'))
