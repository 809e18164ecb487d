"""GLIP-T (A): Swin-T and a DyHead, no fusion before the last layer. Pixels are BGR, as the weights expect."""

bert = 'data/weights/bert_base_uncased'
model = dict(
    type='ovd.GLIP',
    text=dict(
        vocabulary='coco',
        encoder=dict(model=bert, pretrained=True, max_tokens=256),
    ),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[103.53, 116.28, 123.675],
        std=[57.375, 57.12, 58.395],
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='SwinTransformer',
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/swin_tiny_patch4_window7_224.pth'),
    ),
    neck=dict(
        type='FPN_DropBlock',
        in_channels=[192, 384, 768],
        out_channels=256,
        relu_before_extra_convs=True,
        add_extra_convs='on_output',
        num_outs=5,
    ),
    bbox_head=dict(
        channels=256,
        num_blocks=6,
        dyhead=dict(deformable=True, upsample='bilinear'),
        strides=(8, 16, 32, 64, 128),
        anchor_scale=8.0,
        topk=9,
    ),
    test_cfg=dict(
        score_thr=0.05,
        nms_pre=1000,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
        ranking='centerness',
        aggregation='mean',
        pairs_per_forward=4,
    ),
)
# bbox_head of GLIP-T (B) and (C) and of GLIP-L: deep fusion of image and text.
deep_fusion = dict(
    fusion=dict(embed_dims=2048, num_heads=8),
    text_layer=dict(num_heads=12, hidden_channels=3072),
    checkpointed=True,
)
model_needs = [
    dict(
        path=bert,
        what='configuration, vocabulary and, for training, weights of bert-base-uncased',
        how='copy config.json, tokenizer.json (or vocab.txt) and model.safetensors of that model there',
    )
]
