"""Detection and masks by class list with the weights of glipv2_shapes.py: the 24 nouns in one sentence.

    python tools/test.py configs/glipv2_shapes_masks.py work_dirs/glipv2_shapes/latest.pth

Zhang et al., NeurIPS 2022, in small. In training the 8 novel nouns had boxes in captions, and no masks.
"""

_base_ = './glipv2_shapes.py'

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
model = dict(text=dict(vocabulary='shapes'), masks_at_test=True)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric=['bbox', 'segm'])
