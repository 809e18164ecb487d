"""Transfer to COCO: the detector of vild_r50_lvis.py asked for 80 other words, without fine-tuning.

    python tools/test.py configs/vild_r50_lvis_to_coco.py work_dirs/vild_r50_lvis/latest.pth

Published AP: 36.6. The words carry no split, so the ensemble variants use one exponent for all classes.
"""

_base_ = './vild_r50_lvis.py'

vocabulary = 'coco'
model = dict(text=dict(vocabulary=vocabulary), test_cfg=dict(rcnn=dict(score_thr=0.01, max_per_img=100)))
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(
    dataset=dict(
        data_root='data/coco/',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        vocabulary=vocabulary,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric=['bbox', 'segm'])
needs = [
    dict(
        path='data/coco/annotations/instances_val2017.json',
        what='COCO 2017 annotations and images',
        how='see data/README.md, section COCO',
    ),
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]
