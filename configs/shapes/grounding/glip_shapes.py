"""GLIP on OV-Shapes: grounds the phrases of captions, and finds classes by a list of names.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/glip_shapes.py
    python tools/test.py configs/glip_shapes.py work_dirs/glip_shapes/latest.pth
    python tools/test.py configs/glip_shapes_detection.py work_dirs/glip_shapes/latest.pth

Li et al., CVPR 2022, in small: both towers of the tiny CLIP, which has seen captions only, three levels, two
blocks of deep fusion with plain convolutions. All nouns have boxes; a third of the samples are class lists.
No flips: captions say left and right. 400 steps of 16 images, minutes on two cores; scores and times are in
docs/glip_shapes.md.
"""

_base_ = '../../_base_/models/glip_shapes.py'
