from . import base_novel, image_text, images, segmentation, transforms  # noqa: F401
