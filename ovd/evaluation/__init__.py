from . import classification, detection, few_shot, grouping, phrases, proposals, retrieval, segmentation, voc  # noqa: F401
