"""Transfer to Objects365 v2: the detector of vild_r50_lvis.py asked for 365 other words, without fine-tuning.

    python tools/test.py configs/vild_r50_lvis_to_objects365.py work_dirs/vild_r50_lvis/latest.pth

Published AP: 11.8 (on v1 or v2, the paper does not say). The words carry no split, so the ensemble variants
use one exponent for all classes.
"""

_base_ = './vild_r50_lvis.py'

vocabulary = 'objects365'
model = dict(text=dict(vocabulary=vocabulary), test_cfg=dict(rcnn=dict(score_thr=0.003, max_per_img=300)))
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(
    dataset=dict(
        data_root='data/objects365/',
        ann_file='annotations/zhiyuan_objv2_val.json',
        data_prefix=dict(img='val'),
        path_parts=2,
        vocabulary=vocabulary,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric='bbox', max_detections=300)
needs = [
    dict(
        path='data/objects365/annotations/zhiyuan_objv2_val.json',
        what='Objects365 v2 annotations and images',
        how='see data/README.md, section Objects365',
    ),
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]
