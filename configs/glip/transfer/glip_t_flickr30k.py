"""Flickr30k Entities with the weights of GLIP-T or GLIP-T (C): recall of the phrases of every caption.

    python tools/test.py configs/glip_t_flickr30k.py work_dirs/glip_t.safetensors

Li et al., CVPR 2022. Published recall@1, 5, 10 (any box of a phrase counts): GLIP-T 85.7, 95.4, 96.9 on
val and 85.7, 95.8, 97.2 on test; GLIP-T (C) 84.8, 94.9, 96.3 and 85.5, 95.4, 96.6. After ``merged/`` the
same with the boxes of a phrase merged into one. Not reproduced: the released weights were not available.
"""

_base_ = '../glip_t_cap4m.py'

test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ovd.NamedParts',
        parts={name: dict(ann_file=f'final_flickr_separateGT_{name}.json') for name in ('val', 'test')},
        common=dict(
            type='ovd.PhraseSentences',
            data_root='data/flickr30k/',
            data_prefix=dict(img='flickr30k_images'),
            bad_regions='drop',
        ),
        missing='drop',
        pipeline=_base_.phrase_test_steps,
    )
)
test_evaluator = [
    dict(type='ovd.NamedPartsMetric', metric=dict(type='ovd.PhraseRecall', boxes='any')),
    dict(type='ovd.NamedPartsMetric', metric=dict(type='ovd.PhraseRecall', boxes='merged'), prefix='merged'),
]
needs = dict(test=[dict(path='data/flickr30k', how='see data/README.md')])
