from . import base_novel, image_text, images, transforms  # noqa: F401
