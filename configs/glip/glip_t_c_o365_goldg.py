"""GLIP-T (C): deep fusion, trained on Objects365 and the captions of GoldG (Flickr30k, Visual Genome, GQA).

    python tools/train.py configs/glip_t_c_o365_goldg.py

Li et al., CVPR 2022. Published zero-shot AP on COCO val2017: 46.7.
"""

_base_ = './glip_t_a_o365.py'

model = dict(
    bbox_head=dict(
        fusion=dict(embed_dims=2048, num_heads=8),
        text_layer=dict(num_heads=12, hidden_channels=3072),
        checkpointed=True,
    )
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=[
            'classes',
            'base_classes',
            'novel_classes',
            'category_ids',
            'split',
            'ann_file',
            'vocabulary_hash',
        ],
        datasets=[
            {{_base_.objects365_train}},
            dict(
                type='ovd.GroundingDataset',
                data_root='data/flickr30k/',
                ann_file='final_flickr_separateGT_train_vg.json',
                data_prefix=dict(img='flickr30k_images'),
                bad_regions='drop',
                pipeline={{_base_.grounding_steps}},
            ),
            dict(
                type='ovd.GroundingDataset',
                data_root='data/gqa/',
                ann_file='final_mixed_train_no_coco_vg.json',
                data_prefix=dict(img='images'),
                bad_regions='drop',
                pipeline={{_base_.grounding_steps}},
            ),
        ],
    )
)
