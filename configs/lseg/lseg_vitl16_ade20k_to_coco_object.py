"""Transfer to COCO-Object: lseg_vitl16_ade20k.py asked for 80 other words, without fine-tuning.

    python tools/test.py configs/lseg_vitl16_ade20k_to_coco_object.py work_dirs/lseg_vitl16_ade20k/latest.pth

The model has no background, so pixels that the data set calls background are not scored. About 4 GB
(estimate). No published score.
"""

_base_ = './lseg_vitl16_ade20k.py'

vocabulary = 'coco'
model = dict(text=dict(vocabulary=vocabulary))
test_dataloader = dict(
    dataset=dict(
        data_root='data/coco/',
        data_prefix=dict(img_path='val2017', seg_map_path='stuffthingmaps/val2017'),
        vocabulary=vocabulary,
        raw_classes='coco',
        raw_ids=[raw for raw in range(91) if raw not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)],
        background_ids=[*range(91, 182)],
        ignore_ids=[255],
        background='ignore',
    )
)
needs = [
    dict(
        path='data/coco/stuffthingmaps/val2017',
        what='COCO 2017 and the maps of COCO-Stuff 164k',
        how='see data/README.md, section COCO-Stuff',
    ),
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]
