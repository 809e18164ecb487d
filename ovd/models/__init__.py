from . import box_coder, clip, group_readout, samplers, vild, vild_bbox_head  # noqa: F401
