"""Retrieval of configs/groupvit_shapes.py: images and their first captions among 96 of the test split.

python tools/test.py configs/groupvit_shapes_retrieval.py work_dirs/groupvit_shapes/latest.pth
"""

_base_ = './groupvit_shapes.py'

test_dataloader = dict(
    _delete_=True,
    batch_size=32,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.CaptionDataset',
        data_root=_base_.data_root,
        ann_file='annotations/captions_test.json',
        data_prefix=dict(img_path='test'),
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='ovd.CaptionPrompts', count=0, context_length=32),
            dict(type='ovd.PackCaptions'),
        ],
        test_mode=True,
    ),
)
test_evaluator = dict(_delete_=True, type='ovd.RetrievalMetric', batch_size=96)
