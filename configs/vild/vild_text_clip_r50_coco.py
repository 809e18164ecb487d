"""ViLD-text + CLIP on COCO: CLIP classifies crops of the 300 best proposals at test time. Slow.

    python tools/test.py configs/vild_text_clip_r50_coco.py work_dirs/vild_text_r50_coco/latest.pth

Uses the weights of vild_text_r50_coco.py. The paper reports no COCO number for this variant.
"""

_base_ = './vild_r50_coco.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_text')), clip_ensemble=_base_.clip_crops)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
