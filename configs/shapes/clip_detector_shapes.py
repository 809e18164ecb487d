"""Detection on OV-Shapes without training: regions of even colour, named by the tiny CLIP.

    python tools/make_shapes.py --out data/shapes
    python tools/test.py configs/shapes/clip_detector_shapes.py
    python tools/test.py configs/shapes/clip_detector_shapes.py --shuffle-text --out shuffled.json

No box is used anywhere. The proposals of rpn_shapes.py, which has seen boxes of base nouns, take the place
of the segments with --cfg-options model.proposals="dict(config='rpn_shapes',
checkpoint='work_dirs/rpn_shapes/latest.pth')". Scores are in docs/models/training_free.md.
"""

_base_ = '../_base_/runtime.py'

data_root = 'data/shapes/'
vocabulary = 'shapes'
needs = dict(
    test=[
        dict(path=data_root + 'annotations', what='OV-Shapes', how='ovd data shapes (tools/make_shapes.py)')
    ]
)

model = dict(
    type='ovd.ClipDetector',
    tower=dict(model='clip_tiny_shapes', channels_last=True),
    text=dict(vocabulary=vocabulary, templates='single'),
    proposals=dict(segments=dict(scales=(100.0, 300.0, 900.0)), top=50, min_side=12.0),
    crops=dict(mode='warp', scales=(1.0, 1.5)),
    temperature=0.05,
    objectness_weight=0.0,
    test_cfg=dict(score_threshold=0.001, nms=0.5, max_per_image=100),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularyDataset',
        data_root=data_root,
        ann_file='annotations/instances_test.json',
        data_prefix=dict(img='test'),
        vocabulary=vocabulary,
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
        ],
        test_mode=True,
    ),
)
test_evaluator = dict(type='ovd.DetectionMetric', metric=['bbox', 'segm'])
test_cfg = dict(type='TestLoop')
