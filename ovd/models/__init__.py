from . import box_coder, vild_bbox_head

__all__ = ['box_coder', 'vild_bbox_head']
