"""ViLD, Mask R-CNN R50-FPN on LVIS v1: 866 base classes with boxes, 337 rare ones without boxes in training.

    python tools/train.py configs/rpn_r50_lvis.py                  # class-agnostic proposals, base boxes
    python tools/cache_clip_regions.py configs/vild_r50_lvis.py    # CLIP on 2 x 300 crops per image, 31 GB
    torchrun --nproc-per-node 8 tools/train.py configs/vild_r50_lvis.py --launcher pytorch --amp
    python tools/test.py configs/vild_r50_lvis.py work_dirs/vild_r50_lvis/latest.pth

Gu et al., ICLR 2022: 180k iterations of 256 images from scratch, 1024 pixels, large-scale jitter, weight
0.5. The loader takes 8 images per GPU, so the recipe as published wants 32 GPUs; with fewer images per
step add --cfg-options auto_scale_lr.enable=True. About 30 GB per GPU with --amp (estimate).
Published mask AP: 22.5, rare 16.1 (official release 16.6), common 20.0, frequent 28.3. Not yet trained by us.
"""

_base_ = ['../_base_/models/vild_r50.py', '../_base_/datasets/base_novel.py', '../_base_/schedules/vild.py']

data = 'lvis'
vocabulary = 'lvis'  # 1203 names, the 337 rare ones novel: ovd/assets/vocabularies/lvis.json
max_iters = 180000
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
region_cache = dict(image_encoder=dict(dtype='float16', **_base_.clip))
