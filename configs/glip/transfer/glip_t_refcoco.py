"""RefCOCO, RefCOCO+ and RefCOCOg without fine-tuning: the whole sentence is the phrase, one object is meant.

    python tools/test.py configs/glip_t_refcoco.py work_dirs/glip_t.safetensors

Yu et al., ECCV 2016; Mao et al., CVPR 2016; annotations: MDETR. Precision@1, 5, 10 at IoU 0.5 for each
split, and the mean over those that are there. GLIP's authors publish no figures. Not reproduced: the
released weights were not available.
"""

_base_ = '../glip_t_cap4m.py'

model = dict(test_cfg=dict(score_thr=0.0, max_per_img=10))  # always an answer
_mixed = 'refcoco/final_refexp_val.json'  # the three val splits in one file
_one = 'refcoco/finetune_{}.json'
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ovd.NamedParts',
        parts={
            'refcoco_val': dict(ann_file=_mixed, only='refcoco'),
            'refcoco_testA': dict(ann_file=_one.format('refcoco_testA')),
            'refcoco_testB': dict(ann_file=_one.format('refcoco_testB')),
            'refcoco+_val': dict(ann_file=_mixed, only='refcoco+'),
            'refcoco+_testA': dict(ann_file=_one.format('refcoco+_testA')),
            'refcoco+_testB': dict(ann_file=_one.format('refcoco+_testB')),
            'refcocog_val': dict(ann_file=_mixed, only='refcocog'),
            'refcocog_test': dict(ann_file=_one.format('refcocog_test')),
        },
        common=dict(
            type='ovd.ReferringExpressions',
            data_root='data/',
            data_prefix=dict(img='coco2014/train2014'),
            bad_regions='drop',
        ),
        missing='drop',
        pipeline=_base_.phrase_test_steps,
    )
)
test_evaluator = dict(
    _delete_=True, type='ovd.NamedPartsMetric', metric=dict(type='ovd.ReferringPrecision', ks=(1, 5, 10))
)
needs = dict(test=[dict(path='data/refcoco', how='see data/README.md')])
