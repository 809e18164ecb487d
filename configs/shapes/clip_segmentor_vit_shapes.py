"""As clip_segmentor_shapes.py, with the tiny CLIP whose image tower is a transformer: patches of 8 pixels.

python tools/test.py configs/shapes/clip_segmentor_vit_shapes.py
python tools/test.py configs/shapes/clip_segmentor_vit_shapes.py --cfg-options model.tower.attention=sclip
"""

_base_ = './clip_segmentor_shapes.py'

model = dict(
    tower=dict(
        _delete_=True,
        model='clip_tiny_vit_shapes',
        attention='naclip',
    ),
)
