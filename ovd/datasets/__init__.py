from . import base_novel, caption_transforms, captions, image_text, images, segmentation, transforms  # noqa: F401
