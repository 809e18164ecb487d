"""CLIP on cropped regions: LVIS, 1203 names; see clip_detector_vitb32_coco.py.

    python tools/train.py configs/vild/rpn_r50_lvis.py
    python tools/test.py configs/training_free/clip_detector_vitb32_lvis.py

Published (ViLD, ICLR 2022, recalled): APr 13.0, AP 9.2. Not yet run by us, for want of weights.
"""

_base_ = ['../_base_/datasets/base_novel.py', '../_base_/runtime.py']

data = 'lvis'
vocabulary = 'lvis'
model = dict(
    type='ovd.ClipDetector',
    tower=dict(model='data/weights/clip_vit_b32', channels_last=True),
    text=dict(vocabulary=vocabulary, templates='vild63'),
    proposals=dict(
        config='configs/vild/rpn_r50_lvis.py',
        checkpoint='work_dirs/rpn_r50_lvis/latest.pth',
        top=300,
    ),
    crops=dict(mode='warp', scales=(1.0, 1.5)),
    temperature=0.01,
    test_cfg=dict(max_per_image=300),
)
train_dataloader = None
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
]
test_evaluator = dict(metric='bbox')
test_cfg = dict(type='TestLoop')
needs = dict(
    always=[
        dict(
            path='data/weights/clip_vit_b32',
            what="OpenAI's CLIP ViT-B/32",
            how='see data/README.md, section Weights',
        ),
    ]
)
