from . import box_coder, clip, dpt, group_readout, lseg, samplers, vild, vild_bbox_head  # noqa: F401
