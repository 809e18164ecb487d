from . import box_coder, clip, vild, vild_bbox_head  # noqa: F401
