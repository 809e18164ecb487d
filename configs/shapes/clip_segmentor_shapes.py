"""Segmentation of OV-Shapes without training: the tiny CLIP on windows, 24 nouns without any mask.

    python tools/make_shapes.py --out data/shapes
    python tools/test.py configs/shapes/clip_segmentor_shapes.py
    python tools/test.py configs/shapes/clip_segmentor_shapes.py --shuffle-text --out shuffled.json

Pixels that show no shape are left out, as everywhere in the literature that compares without background; a
threshold for it is in docs/models/training_free.md, with the scores of all attentions. The ResNet's own map
of a picture has 4 x 4 cells, so windows through the whole tower take its place.
"""

_base_ = '../_base_/runtime.py'

default_scope = 'mmseg'
data_root = 'data/shapes/'
vocabulary = 'shapes'
needs = [
    dict(
        path=data_root + 'annotations', what='OV-Shapes', how='python tools/make_shapes.py --out data/shapes'
    ),
]

model = dict(
    type='ovd.ClipSegmentor',
    tower=dict(model='clip_tiny_shapes', windows=dict(stride=8, sizes=64, profile='triangle')),
    text=dict(vocabulary=vocabulary, templates='single'),
    temperature=0.05,
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=data_root,
        ann_file='annotations/instances_test_all.json',
        data_prefix=dict(img_path='test'),
        vocabulary=vocabulary,
        background='ignore',
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='ovd.LoadSegmentation'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
    ),
)
test_evaluator = dict(type='ovd.SegmentationMetric')
test_cfg = dict(type='TestLoop')
