"""Transfer to PASCAL VOC 2007: the detector of vild_r50_lvis.py queried with 20 other words, without
fine-tuning.

    python tools/test.py configs/vild_r50_lvis_to_voc.py work_dirs/vild_r50_lvis/latest.pth

Published AP50: 72.2. The vocabulary has no split, so the ensemble variants use one exponent for all classes.
"""

_base_ = './vild_r50_lvis.py'

vocabulary = 'voc'
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.05, max_per_img=100)))
test_size = (1000, 600)
test_dataloader = dict(
    dataset=dict(
        data_root='data/VOCdevkit/',
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(img='VOC2007/JPEGImages'),
    )
)
test_evaluator = dict(_delete_=True, type='ovd.VOCMetric')
needs = dict(
    test=[
        dict(
            path='data/VOCdevkit/VOC2007', what='PASCAL VOC 2007 test', how='see data/README.md, section VOC'
        ),
    ]
)
