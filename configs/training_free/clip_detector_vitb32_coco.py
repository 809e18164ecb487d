"""CLIP on cropped regions: COCO 48/17, class-agnostic proposals named by OpenAI's CLIP ViT-B/32.

    python tools/train.py configs/vild/rpn_r50_coco.py
    python tools/test.py configs/training_free/clip_detector_vitb32_coco.py

The baseline that ViLD starts from. Published (ViLD, ICLR 2022, recalled): AP50 26.3 novel, 28.3 base, 27.8
all. Not yet run by us, for want of weights. model.store=FOLDER answers from a region store of these crops
without running CLIP.
"""

_base_ = ['../_base_/datasets/base_novel.py', '../_base_/runtime.py']

data = 'coco'
vocabulary = 'coco_ov'
model = dict(
    type='ovd.ClipDetector',
    tower=dict(model='data/weights/clip_vit_b32', channels_last=True),
    text=dict(vocabulary=vocabulary, templates='vild63'),
    proposals=dict(
        config='configs/vild/rpn_r50_coco.py',
        checkpoint='work_dirs/rpn_r50_coco/latest.pth',
        top=300,
    ),
    crops=dict(mode='warp', scales=(1.0, 1.5)),
    temperature=0.01,
    test_cfg=dict(max_per_image=100),
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
