from . import classification, detection, few_shot, grouping, proposals, segmentation, voc  # noqa: F401
