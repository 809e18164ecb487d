"""Linear probe: GLIP that never had a box of 8 nouns learns all 24 from 200 images, by its last layers.

    python tools/train.py configs/glip_shapes_novel.py
    python tools/train.py configs/glip_shapes_linear_probe.py
    python tools/test.py configs/glip_shapes_linear_probe.py work_dirs/glip_shapes_linear_probe/latest.pth

Li et al., CVPR 2022, Appendix E, in small: only boxes, centerness and the comparison of anchors and tokens
are trained, from the sentence of all class names. Base and novel AP of tools/test.py tell what was learned;
the "novel" nouns have boxes here. Not tuned; scores are in docs/glip_shapes.md.
"""

_base_ = '../../_base_/models/glip_shapes.py'

load_from = 'work_dirs/glip_shapes_novel/latest.pth'
needs = [
    *_base_.needs,
    dict(
        path=load_from,
        what='GLIP trained without boxes of the novel nouns',
        how='python tools/train.py configs/glip_shapes_novel.py',
    ),
]
model = dict(
    trainable=[
        'bbox_head.boxes.*',
        'bbox_head.centerness.*',
        'bbox_head.project_text.*',
        'bbox_head.log_scale',
        'bbox_head.bias_text',
        'bbox_head.bias',
    ]
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type='ovd.OpenVocabularyDataset',
        data_root=_base_.data_root,
        ann_file='annotations/instances_train_all.json',
        data_prefix=dict(img='train'),
        vocabulary=_base_.nouns,
        indices=200,
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=_base_.meta_keys[:5]),
        ],
    ),
)
test_dataloader = dict(dataset=_base_.detection_test)
test_evaluator = dict(_delete_=True, type='ovd.DetectionMetric', metric='bbox')
val_dataloader = None
val_cfg = None
val_evaluator = None

max_iters = 200
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, milestones=[140, 180], gamma=0.1),
]
