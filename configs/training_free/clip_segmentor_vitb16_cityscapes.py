"""Cityscapes, the 19 evaluated classes, by CLIP alone.

    python tools/test.py configs/training_free/clip_segmentor_vitb16_cityscapes.py

Images with a shorter side of 560 pixels. Published mIoU, ViT-B/16: MaskCLIP 25.0 (rerun by FLOSS, ICCV
2025), SCLIP 32.3, NACLIP with PAMR 38.3 (the README of each repository). Not yet run by us, for want of
weights.
"""

_base_ = ['../_base_/models/clip_vitb16_dense.py', '../_base_/runtime.py']

default_scope = 'mmseg'
vocabulary = 'cityscapes'
model = dict(text=dict(vocabulary=vocabulary))
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root='data/cityscapes/',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelIds.png',
        vocabulary=vocabulary,
        raw_classes='cityscapes',
        raw_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        ignore_ids=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
        test_mode=True,
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='Resize', scale=(2048, 560), keep_ratio=True),
            dict(type='ovd.LoadSegmentation'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_evaluator = dict(type='ovd.SegmentationMetric')
test_cfg = dict(type='TestLoop')
needs = [
    dict(path='data/cityscapes', what='Cityscapes', how='see data/README.md'),
    dict(
        path='data/weights/clip_vit_b16',
        what="OpenAI's CLIP ViT-B/16",
        how='see data/README.md, section Weights',
    ),
]
