from . import classification, detection, proposals, segmentation, voc  # noqa: F401
