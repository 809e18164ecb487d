from . import classification, detection, few_shot, grouping, proposals, retrieval, segmentation, voc  # noqa: F401
