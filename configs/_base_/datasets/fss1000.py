"""FSS-1000: 520 classes to train on, 240 to test on, 2,400 test pictures. See data/README.md.

Training episodes are an image and one of its classes, and a support image of that class; both are trained
on, so that a batch of 20 holds 40 pictures. Pictures are squeezed to 480 x 480, where tests are scored, too
(score_at='original' scores in their own frame). A leaf may add dataset.vocabulary.
"""

data_root = 'data/fss1000/'
_load = [dict(type='ovd.LoadImage'), dict(type='ovd.LoadSegmentation', to_grey=True)]
_pack = dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'class_id'))
train_pipeline = [*_load, dict(type='ovd.SquareResize', size=480), _pack]
test_pipeline = [*_load, dict(type='ovd.SquareResize', size=480, score_at='square'), _pack]
train_dataloader = dict(
    batch_size=20,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='ovd.flatten_episodes'),
    dataset=dict(
        type='ovd.FSS1000Dataset',
        data_root=data_root,
        lists='data/fss1000_splits',
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.FSS1000Dataset',
        data_root=data_root,
        lists='data/fss1000_splits',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='ovd.FewShotMetric')
val_evaluator = test_evaluator
needs = [
    dict(
        path=data_root,
        what='FSS-1000',
        how='see data/README.md, section FSS-1000',
    ),
    dict(
        path='data/fss1000_splits/test.txt',
        what='the lists of training, validation and test classes',
        how='see data/README.md, section FSS-1000',
    ),
]
