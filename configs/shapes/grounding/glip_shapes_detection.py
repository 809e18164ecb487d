"""Detection by class list with the weights of glip_shapes.py: the 24 nouns in one sentence.

    python tools/test.py configs/glip_shapes_detection.py work_dirs/glip_shapes/latest.pth

Li et al., CVPR 2022, in small. Base and novel classes are told apart, but in glip_shapes.py all had boxes.
"""

_base_ = './glip_shapes.py'

test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ovd.OpenVocabularyDataset',
        data_root='data/shapes/',
        ann_file='annotations/instances_test.json',
        data_prefix=dict(img='test'),
        vocabulary='shapes',
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
        test_mode=True,
    )
)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric='bbox')
