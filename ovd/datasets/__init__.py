from . import base_novel, images  # noqa: F401
