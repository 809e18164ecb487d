"""ViLD-text on LVIS v1: words as the classifier, no distillation, no region embeddings.

    torchrun --nproc-per-node 8 tools/train.py configs/vild_text_r50_lvis.py --launcher pytorch --amp
    python tools/test.py configs/vild_text_r50_lvis.py work_dirs/vild_text_r50_lvis/latest.pth

Everything else as in vild_r50_lvis.py. Published mask AP: 24.9, rare 10.1, common 23.9, frequent 32.5.
"""

_base_ = './vild_r50_lvis.py'

model = dict(roi_head=dict(bbox_head=dict(mode='vild_text')))
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
