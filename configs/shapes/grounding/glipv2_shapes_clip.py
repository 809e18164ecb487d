"""GLIPv2 on OV-Shapes with the tiny CLIP's text: region-word contrast and masks, no hidden words.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/glipv2_shapes_clip.py
    python tools/test.py configs/glipv2_shapes_clip.py work_dirs/glipv2_shapes_clip/latest.pth

As glipv2_shapes.py, but phrases are read as in glip_shapes.py; CLIP has no token that hides a word.
glipv2_shapes_clip_masks.py tests detection and masks. Not tuned; scores are in docs/glip_shapes.md.
"""

_base_ = './glipv2_shapes.py'

model = dict(text=dict(encoder=dict(_delete_=True, **_base_.clip_text)), language=None)
