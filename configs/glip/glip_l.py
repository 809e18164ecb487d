"""GLIP-L: Swin-L, eight blocks of deep fusion; to load the published weights and ask them for COCO.

    python tools/convert_checkpoint.py --from glip glip_l_mmdet-abfe026b.pth work_dirs/glip_l.safetensors
    python tools/test.py configs/glip_l.py work_dirs/glip_l.safetensors

Li et al., CVPR 2022. Published zero-shot AP on COCO val2017: 51.4 (released weights, trained on 27
million images); the training data of the base configuration are not those.
"""

_base_ = [
    '../_base_/models/glip_t.py',
    '../_base_/datasets/objects365_glip.py',
    '../_base_/schedules/glip.py',
]

needs = dict(always=_base_.model_needs)
model = dict(
    backbone=dict(
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='data/weights/swin_large_patch4_window12_384_22k.pth'),
    ),
    neck=dict(in_channels=[384, 768, 1536]),
    bbox_head=dict(num_blocks=8, **_base_.deep_fusion),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-2))
