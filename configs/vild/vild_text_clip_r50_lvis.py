"""ViLD-text + CLIP on LVIS v1: CLIP classifies crops of the 300 best proposals at test time. Slow.

    python tools/test.py configs/vild_text_clip_r50_lvis.py work_dirs/vild_text_r50_lvis/latest.pth

Uses the weights of vild_text_r50_lvis.py. Published mask AP: 26.1, rare 22.6, common 24.8, frequent 29.2
(recalled).
"""

_base_ = './vild_r50_lvis.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_text')), clip_ensemble=_base_.clip_crops)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
