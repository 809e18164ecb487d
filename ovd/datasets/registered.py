"""Importing this module registers every data set and every transform that a config can name."""

import ovd.datasets.captions.clip_pairs
import ovd.datasets.captions.dataset
import ovd.datasets.captions.shards
import ovd.datasets.captions.transforms
import ovd.datasets.detection.base_novel
import ovd.datasets.detection.own_classes
import ovd.datasets.detection.region_embeddings
import ovd.datasets.grounding.coco
import ovd.datasets.grounding.dataset
import ovd.datasets.grounding.flickr_entities
import ovd.datasets.grounding.sentences
import ovd.datasets.grounding.transforms
import ovd.datasets.images
import ovd.datasets.named_parts
import ovd.datasets.segmentation.dataset
import ovd.datasets.segmentation.few_shot
import ovd.datasets.segmentation.few_shot_benchmarks
import ovd.datasets.segmentation.unified_vocabulary  # noqa: F401
