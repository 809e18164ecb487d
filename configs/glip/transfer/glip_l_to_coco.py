"""COCO zero-shot with the weights of GLIP-L: val2017, the 80 names in one sentence.

    python tools/test.py configs/glip_l_to_coco.py work_dirs/glip_l.safetensors

Li et al., CVPR 2022. Published AP: 49.8; with the released weights 51.4. Not run by us on the real
weights.
"""

_base_ = '../glip_l.py'

needs = [
    dict(
        path='data/coco/annotations/instances_val2017.json',
        what='COCO 2017 annotations and images',
        how='see data/README.md, section COCO',
    ),
    *_base_.needs,
]
