"""As glip_shapes.py, but the 8 novel nouns never have a box: neither in class lists nor as phrases.

    python tools/train.py configs/glip_shapes_novel.py
    python tools/test.py configs/glip_shapes_novel.py work_dirs/glip_shapes_novel/latest.pth

Li et al., CVPR 2022, in small: does a phrase find a shape whose word never had a box? The tiny CLIP has seen
the words in captions; in the losses they do not count. The recall of base and novel phrases is reported
beside that of naming any object of the picture. docs/glip_shapes.md compares this with
glip_shapes_novel_scratch.py and glip_shapes_student.py.
"""

_base_ = './glip_shapes.py'

model = dict(text=dict(vocabulary='shapes'))  # 24 nouns, 8 of them novel: ovd/assets/vocabularies/shapes.json
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                type='ovd.GroundingDataset',
                data_root=_base_.data_root,
                ann_file='annotations/phrases_train.jsonl',
                data_prefix=dict(img='train'),
                vocabulary='shapes',
                novel_boxes='drop',
                pipeline=_base_.phrase_steps,
            ),
            dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='ovd.OpenVocabularyDataset',
                    data_root=_base_.data_root,
                    ann_file='annotations/instances_train.json',
                    data_prefix=dict(img='train'),
                    vocabulary='shapes',
                    pipeline=[
                        dict(type='ovd.LoadImage'),
                        dict(type='LoadAnnotations', with_bbox=True),
                        dict(
                            type='ovd.SampleClassNames',
                            vocabulary='shapes',
                            tokenizer=_base_.clip,
                            max_names=24,
                        ),
                        dict(type='PackDetInputs', meta_keys=_base_.meta_keys),
                    ],
                ),
            ),
        ],
    )
)
val_evaluator = dict(vocabulary='shapes')
test_evaluator = dict(vocabulary='shapes')
