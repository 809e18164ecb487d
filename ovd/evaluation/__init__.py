from . import (  # noqa: F401
    classification,
    coco_results,
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
