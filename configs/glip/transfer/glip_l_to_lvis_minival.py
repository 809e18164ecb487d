"""As glip_l_to_lvis.py, on the 5,000 images of MDETR's minival.

    python tools/test.py configs/glip_l_to_lvis_minival.py work_dirs/glip_l.safetensors

Published fixed AP (all, rare, common, frequent): 37.3, 28.2, 34.3, 41.5.
"""

_base_ = './glip_l_to_lvis.py'

test_dataloader = dict(dataset=dict(ann_file='lvis_v1/annotations/lvis_v1_minival_inserted_image_name.json'))
needs = [
    dict(
        path='data/lvis_v1/annotations/lvis_v1_minival_inserted_image_name.json',
        what="MDETR's minival of LVIS v1, and COCO 2017 images",
        how='see data/README.md, section LVIS',
    ),
    *_base_.needs[1:],
]
