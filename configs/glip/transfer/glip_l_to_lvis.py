"""LVIS v1 val zero-shot with the weights of GLIP-L: 1,203 names, 40 in a sentence, 300 boxes each.

    python tools/test.py configs/glip_l_to_lvis.py work_dirs/glip_l.safetensors

Li et al., CVPR 2022. Published fixed AP (all, rare, common, frequent): 26.9, 17.1, 23.3, 35.4. Both are
reported: LVIS's own AP over 300 boxes an image, and, after ``fixed/``, over 10,000 boxes a class. Without
names_per_prompt the names go into the fewest sentences that fit: faster, and scored a little differently.
"""

_base_ = '../glip_l.py'

model = dict(
    text=dict(vocabulary='lvis', names_per_prompt=40), test_cfg=dict(max_per_prompt=300, max_per_img=None)
)
test_dataloader = dict(
    dataset=dict(
        data_root='data/',
        ann_file='lvis_v1/annotations/lvis_v1_val.json',
        data_prefix=dict(img='coco'),
        path_key='coco_url',
        vocabulary='lvis',
    )
)
test_evaluator = [
    dict(type='ovd.LVISMetric', metric='bbox'),
    dict(type='ovd.LVISMetric', metric='bbox', fixed_ap=True, prefix='fixed'),
]
needs = [
    dict(
        path='data/lvis_v1/annotations/lvis_v1_val.json',
        what='LVIS v1 annotations and COCO 2017 images',
        how='see data/README.md, section LVIS',
    ),
    *_base_.needs,
]
