"""GroupViT with ViT-S/16, as released: 196 patches, 64 groups, 8 groups; 55.7 M parameters.

A config that inherits from this adds its words (model.text.vocabulary), the readout and the way images are
seen.
"""

model = dict(
    type='ovd.GroupViT',
    text=dict(templates='a photo of a {}.'),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        seg_pad_val=-1,
    ),
    image_encoder=dict(
        type='ovd.GroupingTransformer',
        image_size=224,
        patch_size=16,
        dims=(384, 384, 384),
        depths=(6, 3, 3),
        num_heads=(6, 6, 6),
        num_group_tokens=(64, 8, 0),
        num_output_groups=(64, 8),
        drop_path=0.1,
    ),
    text_encoder=dict(width=256, heads=4, layers=12, context_length=77, vocab_size=49408),
    embed_dim=256,
    hidden_dim=4096,
)
threshold = 0.95
# Zero-shot segmentation: images with a shorter side of 448 in windows of 448 pixels.
segmentation = dict(
    readout=dict(type='ovd.SoftReadout', background=dict(threshold=threshold)),
    test_cfg=dict(mode='slide', crop_size=448, stride=224),
)
# As released: each window by itself, at most five classes, a best group that is never background; border
# pixels that fill no patch are ignored.
released_segmentation = dict(
    size_divisor=1, readout=dict(_delete_=True, type='ovd.ReferenceReadout', background=threshold)
)
resized_test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(2048, 448), keep_ratio=True),
    dict(type='ovd.LoadSegmentation'),
    dict(type='PackSegInputs'),
]
