"""Retrieval of a trained GroupViT on the 5,000 images of COCO val2017 and the first caption of each.

    python tools/test.py configs/groupvit_vits16_coco_retrieval.py CHECKPOINT

Images are resized to a shorter side of 256 and cropped to 224 in the middle, as for zero-shot classification.
Recall at 1 over the set and within batches of 256, both directions. No number is published.
"""

_base_ = './groupvit_vits16_gcc_yfcc.py'

coco_root = 'data/coco/'
needs = dict(
    test=[
        dict(
            path=coco_root + 'annotations/captions_val2017.json',
            what='COCO 2017 captions',
            how='see data/README.md, section COCO',
        ),
    ]
)
test_dataloader = dict(
    batch_size=32,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.CaptionDataset',
        data_root=coco_root,
        ann_file='annotations/captions_val2017.json',
        data_prefix=dict(img_path='val2017'),
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='Resize', scale=(100000, 256), keep_ratio=True),
            dict(type='CenterCrop', crop_size=224),
            dict(type='ovd.CaptionPrompts', count=0),
            dict(type='ovd.PackCaptions'),
        ],
        test_mode=True,
    ),
)
test_cfg = dict()
test_evaluator = dict(type='ovd.RetrievalMetric', batch_size=256)
