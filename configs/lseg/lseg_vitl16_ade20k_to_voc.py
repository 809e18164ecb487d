"""Transfer to PASCAL VOC 2012: lseg_vitl16_ade20k.py asked for 20 other words, without fine-tuning.

    python tools/test.py configs/lseg_vitl16_ade20k_to_voc.py work_dirs/lseg_vitl16_ade20k/latest.pth

The model has no background, so pixels that the data set calls background are not scored. About 4 GB
(estimate). No published score.
"""

_base_ = './lseg_vitl16_ade20k.py'

vocabulary = 'voc'
model = dict(text=dict(vocabulary=vocabulary))
test_dataloader = dict(
    dataset=dict(
        data_root='data/VOCdevkit/VOC2012/',
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        vocabulary=vocabulary,
        raw_classes='voc',
        background_ids=[0],
        ignore_ids=[255],
        background='ignore',
    )
)
needs = [
    dict(
        path='data/VOCdevkit/VOC2012/SegmentationClass',
        what='PASCAL VOC 2012',
        how='see data/README.md, section VOC 2012 segmentation',
    ),
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]
