"""ViLD, Mask R-CNN R50-FPN on COCO: 48 base classes with boxes, 17 novel ones without boxes in training.

    python tools/train.py configs/rpn_r50_coco.py                  # class-agnostic proposals, base boxes
    python tools/cache_clip_regions.py configs/vild_r50_coco.py    # CLIP on 2 x 300 crops per image, 37 GB
    torchrun --nproc-per-node 8 tools/train.py configs/vild_r50_coco.py --launcher pytorch --amp
    python tools/test.py configs/vild_r50_coco.py work_dirs/vild_r50_coco/latest.pth

Gu et al., ICLR 2022: 45k iterations of 256 images and weaker jitter than on LVIS (both recalled), weight
0.5. The loader takes 8 images per GPU, so the recipe as published wants 32 GPUs; with fewer images per
step add --cfg-options auto_scale_lr.enable=True. About 30 GB per GPU with --amp (estimate).
Published box AP50: novel 27.6, base 59.5, all 51.3. Not yet trained by us.
"""

_base_ = ['../_base_/models/vild_r50.py', '../_base_/datasets/base_novel.py', '../_base_/schedules/vild.py']

data = 'coco'
vocabulary = 'coco_ov'  # 65 names, 17 of them novel: ovd/assets/vocabularies/coco_ov.json
max_iters = 45000
max_per_image = 100
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary))
region_cache = dict(image_encoder=dict(dtype='float16', **_base_.clip))
