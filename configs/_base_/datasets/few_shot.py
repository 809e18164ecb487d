"""Zero-shot episodes, chosen by ``data``: 'pascal5i', 'coco20i' or 'fss1000'. See data/README.md.

A training episode is an image, one of its classes and a support image of that class; both images are
trained on, so that a batch of 20 holds 40 images. Images are squeezed to 480 x 480, where tests are scored
too (score_at='original' scores in their own frame). Four folds of PASCAL-5i (15 classes to train on, 5 to
test on) and COCO-20i (60 and 20): set ``fold``. FSS-1000 has 520 classes to train on, 240 to test on, 2,400
test images. HSNet's lists of episodes go to dataset.lists; without them they are drawn as HSNet does.
"""

data = 'pascal5i'
_sets = dict(
    pascal5i=dict(
        type='ovd.Pascal5iDataset',
        root='data/VOCdevkit/VOC2012/',
        vocabulary='fewshot_pascal',
        train=dict(
            ann_file='ImageSets/Segmentation/trainaug.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
        ),
        test=dict(
            ann_file='ImageSets/Segmentation/val.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ),
        needs=[('SegmentationClassAug', 'PASCAL VOC 2012 and SBD', 'VOC 2012 segmentation')],
    ),
    coco20i=dict(
        type='ovd.COCO20iDataset',
        root='data/coco2014/',
        vocabulary='fewshot_coco',
        train=dict(ann_file='annotations/instances_train2014.json', data_prefix=dict(img_path='train2014')),
        test=dict(ann_file='annotations/instances_val2014.json', data_prefix=dict(img_path='val2014')),
        needs=[('annotations/instances_val2014.json', 'COCO 2014 annotations and images', 'COCO 2014')],
    ),
    fss1000=dict(
        type='ovd.FSS1000Dataset',
        root='data/fss1000/',
        vocabulary='data/fss1000_splits/classes.txt',
        train=dict(lists='data/fss1000_splits'),
        test=dict(lists='data/fss1000_splits'),
        needs=[('', 'FSS-1000', 'FSS-1000')],
    ),
)
_set = _sets[data]
_has_folds = data != 'fss1000'
if _has_folds:
    fold = 0
data_root = _set['root']
vocabulary = _set['vocabulary']
_load = [
    dict(type='ovd.LoadImage'),
    dict(type='ovd.LoadSegmentation', **({} if _has_folds else dict(to_grey=True))),
]
_pack = dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'class_id'))
train_pipeline = [*_load, dict(type='ovd.SquareResize', size=480), _pack]
test_pipeline = [*_load, dict(type='ovd.SquareResize', size=480, score_at='square'), _pack]
# FSS-1000's words are its folders, in the order of the lists.
_words = dict(vocabulary=vocabulary, fold=fold) if _has_folds else {}
train_dataloader = dict(
    batch_size=20,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='ovd.flatten_episodes'),
    dataset=dict(type=_set['type'], data_root=data_root, **_set['train'], pipeline=train_pipeline, **_words),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=_set['type'],
        data_root=data_root,
        **_set['test'],
        pipeline=test_pipeline,
        test_mode=True,
        **_words,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='ovd.FewShotMetric')
val_evaluator = test_evaluator
_needs = [
    dict(path=data_root + path, what=what, how=f'see data/README.md, section {section}')
    for path, what, section in _set['needs']
]
if not _has_folds:
    _needs.append(
        dict(
            path='data/fss1000_splits/test.txt',
            what='the lists of training, validation and test classes',
            how='see data/README.md, section FSS-1000',
        )
    )
needs = dict(train=_needs, test=_needs)
