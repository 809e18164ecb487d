from . import box_coder, clip, samplers, vild, vild_bbox_head  # noqa: F401
