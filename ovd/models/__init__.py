from . import (  # noqa: F401
    box_coder,
    clip,
    clip_resnet,
    dpt,
    glip,
    group_encoder,
    group_readout,
    groupvit,
    lseg,
    samplers,
    vild,
    vild_bbox_head,
)
