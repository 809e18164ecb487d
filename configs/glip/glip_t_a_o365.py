"""GLIP-T (A): Swin-T, no fusion before the last layer; trained on Objects365, tested on COCO.

    python tools/train.py configs/glip_t_a_o365.py
    python tools/convert_checkpoint.py --from glip glip_tiny_a_mmdet-b3654169.pth \\
        work_dirs/glip_t_a.safetensors
    python tools/test.py configs/glip_t_a_o365.py work_dirs/glip_t_a.safetensors

Li et al., CVPR 2022. Published zero-shot AP on COCO val2017: 42.9. 30 epochs of 0.66 million images, batch
64: 32 V100 GPUs in the paper. Pixels are BGR and resized by Pillow, as the weights expect.
"""

_base_ = [
    '../_base_/models/glip_t.py',
    '../_base_/datasets/objects365_glip.py',
    '../_base_/schedules/glip.py',
]

needs = dict(always=_base_.model_needs)
