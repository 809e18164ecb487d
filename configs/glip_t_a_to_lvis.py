"""LVIS zero-shot with the weights of glip_t_a_o365.py: 1,203 names, 40 in a sentence, 300 boxes each.

    python tools/test.py configs/glip_t_a_to_lvis.py work_dirs/glip_t_a.safetensors

Li et al., CVPR 2022. Published fixed AP on val: 12.3 (rare 6.0). Without names_per_prompt the names go into
the fewest sentences that fit, which is faster and scores a little differently.
"""

_base_ = './glip_t_a_o365.py'

model = dict(
    text=dict(vocabulary='lvis', names_per_prompt=40), test_cfg=dict(max_per_prompt=300, max_per_img=None)
)
test_dataloader = dict(
    dataset=dict(
        data_root='data/lvis_v1/',
        ann_file='annotations/lvis_v1_val.json',
        data_prefix=dict(img=''),
        vocabulary='lvis',
    )
)
test_evaluator = dict(_delete_=True, type='ovd.LVISMetric', metric='bbox')
