from . import classification, detection, grouping, proposals, segmentation, voc  # noqa: F401
