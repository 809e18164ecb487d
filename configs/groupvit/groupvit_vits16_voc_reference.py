"""GroupViT on the same data, evaluated as released; see groupvit_vits16_voc.py.

    python tools/test.py configs/groupvit_vits16_voc_reference.py groupvit.safetensors

Published: 52.3 (weights GCC+YFCC), 50.8 (GCC+RedCaps) mIoU, background included.
Not reproduced: the released weights were not available.
"""

_base_ = './groupvit_vits16_voc.py'

model = _base_.released_segmentation
