"""ViLD-text + CLIP on COCO: CLIP classifies crops of the 300 best proposals at test time. Slow.

    python tools/test.py configs/vild_text_clip_r50_coco.py work_dirs/vild_text_r50_coco/latest.pth

Uses the weights of vild_text_r50_coco.py. The paper reports no COCO number for this variant.
"""

_base_ = './vild_text_r50_coco.py'

model = dict(
    clip_ensemble=dict(
        image_encoder=_base_.clip, crops=dict(mode='warp', scales=(1.0, 1.5), resize='fast'), num_regions=300
    )
)
