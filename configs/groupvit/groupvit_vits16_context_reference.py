"""GroupViT on the same data, evaluated as released; see groupvit_vits16_context.py.

    python tools/test.py configs/groupvit_vits16_context_reference.py groupvit.safetensors

Published: 22.4 (weights GCC+YFCC), 23.7 (GCC+RedCaps) mIoU, background included.
Not reproduced: the released weights were not available.
"""

_base_ = './groupvit_vits16_context.py'

model = _base_.released_segmentation
