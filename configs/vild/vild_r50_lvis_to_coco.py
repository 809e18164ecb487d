"""Transfer to COCO: the detector of vild_r50_lvis.py queried with 80 other words, without fine-tuning.

    python tools/test.py configs/vild_r50_lvis_to_coco.py work_dirs/vild_r50_lvis/latest.pth

Published AP: 36.6. The vocabulary has no split, so the ensemble variants use one exponent for all classes.
"""

_base_ = './vild_r50_lvis.py'

vocabulary = 'coco'
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.01, max_per_img=100)))
test_size = (1333, 800)
test_dataloader = dict(
    dataset=dict(
        data_root='data/coco/',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
    )
)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric=['bbox', 'segm'])
needs = dict(
    test=[
        dict(
            path='data/coco/annotations/instances_val2017.json',
            what='COCO 2017 annotations and images',
            how='see data/README.md, section COCO',
        ),
    ]
)
