"""NACLIP: the dense features of OpenAI's CLIP ViT-B/16 against words, nothing trained.

Other methods are one line in a leaf: model.tower.attention = 'maskclip', 'clipsurgery', 'sclip',
'clearclip', or 'proxyclip' with model.tower.proxy. Images with a shorter side of 336 pixels, windows of 224
with stride 112.
"""

clip = dict(model='ViT-B-16-quickgelu', pretrained='data/weights/clip_vit_b16/model.safetensors')
model = dict(
    type='ovd.ClipSegmentor',
    tower=dict(attention='naclip', **clip),
    text=dict(templates='clip80'),
    temperature=0.01,
    test_cfg=dict(mode='slide', crop_size=224, stride=112),
)
photo_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(2048, 336), keep_ratio=True),
    dict(type='ovd.LoadSegmentation'),
    dict(type='PackSegInputs'),
]
model_needs = [
    dict(
        path='data/weights/clip_vit_b16',
        what="OpenAI's CLIP ViT-B/16",
        how='see data/README.md, section Weights',
    ),
]
