"""Predictions in COCO's results format: boxes, masks and maps as lists of JSON objects.

Source: https://cocodataset.org/#format-results. ``bbox`` is [x, y, width, height] in pixels, masks are
compressed run lengths; an entry of a map of words has no score.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric

from ..files import write_json
from ..registry import METRICS


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a bool mask [H, W]."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode('ascii')}


def instance_entries(
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    category_ids: Sequence[int],
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One entry for each of N instances.

    Args:
        image_id: of the image.
        boxes: [N, 4] xyxy in pixels.
        scores: [N].
        category_ids: N.
        masks: bool [N, H, W].
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    extents = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    entries: list[dict[str, Any]] = [
        {'image_id': image_id, 'category_id': category, 'bbox': box, 'score': score}
        for category, box, score in zip(category_ids, extents, np.asarray(scores, np.float64).tolist())
    ]
    if masks is not None:
        for entry, mask in zip(entries, masks):
            entry['segmentation'] = encode_mask(mask)
    return entries


def map_entries(image_id: int, labels: np.ndarray, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One entry for each word of a map [H, W] of labels; labels beyond ``category_ids`` are left out."""
    return [
        {'image_id': image_id, 'category_id': category, 'segmentation': encode_mask(labels == label)}
        for label, category in enumerate(category_ids)
        if (labels == label).any()
    ]


@METRICS.register_module()
class CocoResults(BaseMetric):
    """Writes the predictions of a test as COCO results; it scores nothing.

    Image ids are the data set's, or the position of the image where it has none. Category ids are those of
    the annotation file, or the label plus one where the data set names none; classes that the file lacks are
    left out.

    Args:
        out_file: the JSON file.
    """

    default_prefix = 'coco_results'

    def __init__(self, out_file: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.out_file = out_file

    @property
    def dataset_meta(self) -> dict[str, Any] | None:
        """What the data set tells of itself."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict[str, Any] | None) -> None:
        if dataset_meta is not None and not dataset_meta.get('classes'):
            raise ValueError(
                'COCO results need the classes of one data set; this one has sentences of its own, or parts'
            )
        self._dataset_meta = dataset_meta

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep the entries of a batch."""
        assert self.dataset_meta is not None
        ids = self.dataset_meta.get('category_ids') or range(1, len(self.dataset_meta['classes']) + 1)
        for sample in data_samples:
            image_id = sample.get('img_id', sample.get('sample_idx'))
            if image_id is None:
                raise ValueError("COCO results need the id of each image: put 'img_id' into meta_keys")
            if 'pred_sem_seg' in sample:
                labels = _numpy(sample['pred_sem_seg']['data'])[0]
                entries = map_entries(image_id, labels, list(ids))
            else:
                entries = _instances(image_id, sample['pred_instances'], list(ids))
            self.results.append([entry for entry in entries if entry['category_id'] is not None])

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, float]:
        entries = [entry for image in results for entry in image]
        if is_main_process():
            write_json(self.out_file, entries, indent=None)
        return {'entries': float(len(entries))}


def _instances(image_id: int, instances: Mapping[str, Any], ids: Sequence[int]) -> list[dict[str, Any]]:
    masks = instances.get('masks')
    return instance_entries(
        image_id,
        _numpy(instances['bboxes'], np.float32),
        _numpy(instances['scores'], np.float32),
        [ids[label] for label in _numpy(instances['labels']).tolist()],
        None if masks is None else _numpy(masks),
    )


def _numpy(values: Any, dtype: Any = None) -> np.ndarray:
    array: np.ndarray = torch.as_tensor(values).detach().cpu().numpy()
    return array if dtype is None else array.astype(dtype)
