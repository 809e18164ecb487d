"""GLIPv2 on OV-Shapes: glip_shapes.py with region-word contrast, hidden words and masks.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/glipv2_shapes.py
    python tools/test.py configs/glipv2_shapes.py work_dirs/glipv2_shapes/latest.pth

Zhang et al., NeurIPS 2022, in small. All nouns have boxes in captions; only the 16 base nouns have
masks, and boxes of class lists. glipv2_shapes_masks.py tests detection and masks. Not tuned; scores are in
docs/glip_shapes.md.
"""

_base_ = './glip_shapes.py'

data_root = 'data/shapes/'
text_encoder = 'bert_tiny_shapes'  # reads tokens one by one, so words can be hidden from it
model = dict(
    type='ovd.GLIPv2',
    text=dict(encoder=dict(_delete_=True, model=text_encoder)),
    contrast=dict(embed_dim=64, max_positives=100, weight=0.1),
    language=dict(rate=0.15, mask_share=0.8, random_share=0.1, weight=0.5),
    masks=dict(
        hidden_channels=32,
        num_convs=2,
        roi_size=10,
        sampling_ratio=1,
        strides=(8, 16),
        finest_scale=28,
        max_detections=20,
    ),
    masks_at_test=False,  # phrases are scored by their boxes
)
class_list_keys = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'text',
    'tokens_positive',
    'tokens_ignored',
    'caption_ranges',
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys={{_base_.train_dataloader.dataset.ignore_keys}},
        datasets=[
            dict(
                type='ovd.GroundingDataset',
                data_root=data_root,
                ann_file='annotations/phrases_train.jsonl',
                data_prefix=dict(img='train'),
                pipeline={{_base_.phrase_steps}},
            ),
            dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='ovd.OpenVocabularyDataset',
                    data_root=data_root,
                    ann_file='annotations/instances_train.json',  # base classes only
                    data_prefix=dict(img='train'),
                    vocabulary='shapes',
                    pipeline=[
                        dict(type='ovd.LoadImage'),
                        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                        dict(
                            type='ovd.SampleClassNames',
                            vocabulary='shapes',  # novel names are never drawn
                            tokenizer=text_encoder,
                            max_names=24,
                        ),
                        dict(type='PackDetInputs', meta_keys=class_list_keys),
                    ],
                ),
            ),
        ],
    )
)
