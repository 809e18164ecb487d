"""COCO zero-shot with the weights of GLIP-T (A): val2017, the 80 names in one sentence.

    python tools/test.py configs/glip_t_a_to_coco.py work_dirs/glip_t_a.safetensors

Li et al., CVPR 2022. Published AP: 42.9 (its port to mmdet: 43.0). Not run by us on the real weights.
"""

_base_ = '../glip_t_a_o365.py'

needs = [
    dict(
        path='data/coco/annotations/instances_val2017.json',
        what='COCO 2017 annotations and images',
        how='see data/README.md, section COCO',
    ),
    *_base_.needs,
]
