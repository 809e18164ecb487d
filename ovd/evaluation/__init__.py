from . import (  # noqa: F401
    classification,
    detection,
    few_shot,
    grouping,
    joined,
    phrases,
    proposals,
    retrieval,
    segmentation,
    voc,
)
