"""Transfer to PASCAL VOC 2007: the detector of vild_r50_lvis.py asked for 20 other words, without
fine-tuning.

    python tools/test.py configs/vild_r50_lvis_to_voc.py work_dirs/vild_r50_lvis/latest.pth

Published AP50: 72.2. The words carry no split, so the ensemble variants use one exponent for all classes.
"""

_base_ = './vild_r50_lvis.py'

vocabulary = 'voc'
model = dict(text=dict(vocabulary=vocabulary), test_cfg=dict(rcnn=dict(score_thr=0.05, max_per_img=100)))
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(
    dataset=dict(
        data_root='data/VOCdevkit/',
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(img='VOC2007/JPEGImages'),
        vocabulary=vocabulary,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(_delete_=True, type='ovd.VOCMetric')
needs = [
    dict(path='data/VOCdevkit/VOC2007', what='PASCAL VOC 2007 test', how='see data/README.md, section VOC'),
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]
