"""Transfer to Objects365 v2: the detector of vild_r50_lvis.py queried with 365 other words, without fine-
tuning.

    python tools/test.py configs/vild_r50_lvis_to_objects365.py work_dirs/vild_r50_lvis/latest.pth

Published AP: 11.8 (on v1 or v2, the paper does not say). The vocabulary has no split, so the ensemble
variants use one exponent for all classes.
"""

_base_ = './vild_r50_lvis.py'

vocabulary = 'objects365'
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.003, max_per_img=300)))
test_size = (1333, 800)
test_dataloader = dict(
    dataset=dict(
        data_root='data/objects365/',
        ann_file='annotations/zhiyuan_objv2_val.json',
        data_prefix=dict(img='val'),
        path_parts=2,
    )
)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric='bbox', max_detections=300)
needs = dict(
    test=[
        dict(
            path='data/objects365/annotations/zhiyuan_objv2_val.json',
            what='Objects365 v2 annotations and images',
            how='see data/README.md, section Objects365',
        ),
    ]
)
