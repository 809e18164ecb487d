"""ViLD-text on COCO: words as the classifier, no distillation, no region embeddings.

    torchrun --nproc-per-node 8 tools/train.py configs/vild_text_r50_coco.py --launcher pytorch --amp
    python tools/test.py configs/vild_text_r50_coco.py work_dirs/vild_text_r50_coco/latest.pth

Everything else as in vild_r50_coco.py. Published box AP50: novel 5.9, base 61.8, all 47.2 (recalled).
"""

_base_ = './vild_r50_coco.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_text')))
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
