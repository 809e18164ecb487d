"""GLIP-T: as glip_t_c_o365_goldg.py, and four million captions from the web with a teacher's boxes.

    python tools/pseudo_label.py configs/glip_t_cap4m.py
    python tools/train.py configs/glip_t_cap4m.py
    python tools/convert_checkpoint.py --from glip glip_tiny_mmdet-c24ce662.pth work_dirs/glip_t.safetensors

Li et al., CVPR 2022, Sec. 3.3. Published zero-shot AP on COCO val2017: 46.3; the released weights,
trained on CC3M and SBU instead: 46.6. The teacher is GLIP-T (C); captions stand among up to 19 others. Not
run by us.
"""

_base_ = [
    '../_base_/models/glip_t.py',
    '../_base_/datasets/objects365_glip.py',
    '../_base_/schedules/glip.py',
]

needs = dict(always=_base_.model_needs)
model = dict(bbox_head=_base_.deep_fusion)
captions = 'data/cap4m/pseudo_boxes.jsonl'
pseudo_labels = dict(
    out=captions,
    teacher=dict(config='configs/glip_t_c_o365_goldg.py', checkpoint='work_dirs/glip_t_c.safetensors'),
    captions=dict(
        type='ovd.CaptionDataset',
        data_root='data/cap4m/',
        ann_file='captions.csv',
        data_prefix=dict(img_path='images'),
        missing_images='drop',
    ),
    nouns=dict(phrases=True),
    broken_images='drop',
    score_thr=0.5,
)
train_dataloader = dict(
    dataset=dict(
        _base_.joined_train,
        datasets=[
            _base_.objects365_train,
            *_base_.goldg_train,
            dict(
                type='ovd.GroundingDataset',
                data_root='data/cap4m/',
                ann_file='pseudo_boxes.jsonl',
                data_prefix=dict(img='images'),
                min_score=0.5,
                bad_regions='drop',
                missing_images='unchecked',
                pipeline=[
                    *_base_.grounding_steps[:-2],
                    dict(
                        type='ovd.PackNegativeCaptions',
                        captions=captions,
                        tokenizer='data/weights/bert_base_uncased',
                        max_negatives=19,
                        plain_prob=0.4,
                        full_prob=0.3,
                        max_tokens=256,
                    ),
                    *_base_.grounding_steps[-2:],
                ],
            ),
        ],
    )
)
