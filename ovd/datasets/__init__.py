from . import (  # noqa: F401
    base_novel,
    caption_shards,
    caption_transforms,
    captions,
    few_shot,
    few_shot_sets,
    grounding,
    image_text,
    images,
    segmentation,
    transforms,
    unified,
)
