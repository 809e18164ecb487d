"""Importing this module registers every metric that a config can name."""

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
