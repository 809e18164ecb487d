"""GroupViT on the same data, evaluated as released; see groupvit_vits16_coco_object.py.

    python tools/test.py configs/groupvit_vits16_coco_object_reference.py groupvit.safetensors

Published: 24.3 (weights GCC+YFCC), 27.5 (GCC+RedCaps) mIoU, background included.
Not reproduced: the released weights were not available.
"""

_base_ = './groupvit_vits16_coco_object.py'

model = _base_.released_segmentation
