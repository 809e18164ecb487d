"""GroupViT on the same data, evaluated as released; see groupvit_vits16_voc.py.

    python tools/test.py configs/groupvit_vits16_voc_reference.py groupvit.safetensors

Published: 52.3 (weights GCC+YFCC), 50.8 (GCC+RedCaps) mIoU, background included. Each window
by itself: at most five classes, a best group that is never background; borders that fill no patch are not
looked at. Not yet run by us, for want of weights.
"""

_base_ = './groupvit_vits16_voc.py'

model = dict(
    size_divisor=1,
    readout=dict(_delete_=True, type='ovd.ReferenceReadout', background=0.95),
)
