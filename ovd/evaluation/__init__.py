from . import (  # noqa: F401
    classification,
    detection,
    few_shot,
    grouping,
    named_parts,
    phrases,
    proposals,
    retrieval,
    segmentation,
    voc,
)
