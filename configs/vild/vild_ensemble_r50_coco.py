"""ViLD-ensemble on COCO: distillation in a head of its own, scores combined at test time.

    torchrun --nproc-per-node 8 tools/train.py configs/vild_ensemble_r50_coco.py --launcher pytorch --amp
    python tools/test.py configs/vild_ensemble_r50_coco.py work_dirs/vild_ensemble_r50_coco/latest.pth

Everything else as in vild_r50_coco.py; about 10 % more time per step (estimate).
The paper reports no COCO number for the ensemble.
"""

_base_ = './vild_r50_coco.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_ensemble')))
