"""GLIP-T (B): as glip_t_a_o365.py, with deep fusion of image and text.

    python tools/train.py configs/glip_t_b_o365.py

Li et al., CVPR 2022. Published zero-shot AP on COCO val2017: 44.9.
"""

_base_ = './glip_t_a_o365.py'

model = dict(
    bbox_head=dict(
        fusion=dict(embed_dims=2048, num_heads=8),
        text_layer=dict(num_heads=12, hidden_channels=3072),
        checkpointed=True,
    )
)
