from . import (  # noqa: F401
    box_coder,
    clip,
    dpt,
    group_encoder,
    group_readout,
    groupvit,
    lseg,
    samplers,
    vild,
    vild_bbox_head,
)
