"""As glip_t_cap4m_to_lvis.py, on the 5,000 images of MDETR's minival.

    python tools/test.py configs/glip_t_cap4m_to_lvis_minival.py work_dirs/glip_t.safetensors

Published fixed AP (all, rare, common, frequent): 26.0, 20.8, 21.4, 31.0.
"""

_base_ = './glip_t_cap4m_to_lvis.py'

test_dataloader = dict(dataset=dict(ann_file='lvis_v1/annotations/lvis_v1_minival_inserted_image_name.json'))
needs = [
    dict(
        path='data/lvis_v1/annotations/lvis_v1_minival_inserted_image_name.json',
        what="MDETR's minival of LVIS v1, and COCO 2017 images",
        how='see data/README.md, section LVIS',
    ),
    *_base_.needs[1:],
]
