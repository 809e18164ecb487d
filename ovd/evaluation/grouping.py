"""Mask quality of a model that groups pixels, independent of its classification.

Reading order: GroupingMetric, measure_groups (one image), its parts, uniform_grid (the baseline).

Source: Xu et al., GroupViT, CVPR 2022, App. C.2-C.3 (oracle, mask probing after DINO); Cheng et al., Boundary
IoU, CVPR 2021.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.logging import MMLogger

from ..datasets.segmentation.label_maps import IGNORE_INDEX
from ..registry import METRICS
from .reporting_metric import or_none
from .segmentation import (
    PixelCounts,
    SegmentationMetric,
    check_labels,
    count_pixels,
    divide,
    label_map_of,
    sum_counts,
)


@dataclass(frozen=True, eq=False)
class GroupMeasures:
    """Mask quality of the groups of one image.

    Attributes:
        oracle: pixel counts when each group has its best label.
        boundary: the same near outlines only.
        class_overlaps: IoU of the best group for each class in the image, without background.
        object_overlaps: the same for each connected component of a class.
        used: number of groups with pixels.
    """

    oracle: PixelCounts
    boundary: PixelCounts
    class_overlaps: list[float]
    object_overlaps: list[float]
    used: int


@METRICS.register_module()
class GroupingMetric(SegmentationMetric):
    """Mask quality of groups, independent of their classification.

    Reads ``pred_groups`` (GroupViT with ``test_cfg.keep_groups``) and ``gt_sem_seg``, both [1, H, W]; ignored
    pixels are excluded. Keys, after the prefix ``groups/``, as fractions except the last:

    - ``oracle_mIoU``: mIoU when each group has the label of best IoU in its image (background included, if it
      is a class); the gap to ``seg/mIoU`` is due to classification;
    - ``oracle_boundary_mIoU``: the same over pixels near outlines;
    - ``class_IoU`` (mask probing): IoU of the best group for each class of an image without background, mean
      over the classes of an image, then over images;
    - ``object_IoU``: mean IoU of the best group for each connected component of a class;
    - ``used``: groups with pixels per image.

    With ``baseline_groups``, keys with the prefix ``grid_`` are those of a grid of rectangles.

    Args:
        baseline_groups: number of rectangles of the baseline; None: no baseline.
        boundary: width of outlines as a fraction of the image diagonal.
        min_object: minimum pixels of a connected component.
        kwargs: see ``SegmentationMetric``; ``save_maps`` writes the oracle label maps.
    """

    default_prefix = 'groups'

    def __init__(
        self,
        baseline_groups: int | None = None,
        boundary: float = 0.02,
        min_object: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.baseline_groups, self.boundary, self.min_object = baseline_groups, boundary, min_object

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Measure the groups of each image."""
        classes, num_labels = len(self._classes.names), self._classes.num_labels
        for sample in data_samples:
            path = str(sample.get('img_path', 'an image without path'))
            if 'pred_groups' not in sample:
                raise ValueError(f'{path} has no pred_groups: set test_cfg.keep_groups=True in the model')
            groups, truth = (label_map_of(sample, key, path) for key in ('pred_groups', 'gt_sem_seg'))
            if groups.shape != truth.shape:
                raise ValueError(f'{path}: groups are {groups.shape}, true labels {truth.shape} (H, W)')
            check_labels('true', truth, num_labels, path)
            candidates = {'': groups}
            if self.baseline_groups is not None:
                candidates['grid_'] = uniform_grid(truth.shape[0], truth.shape[1], self.baseline_groups)
            measures = {
                key: measure_groups(candidate, truth, num_labels, classes, self.boundary, self.min_object)
                for key, candidate in candidates.items()
            }
            if self.save_maps is not None:
                self.save_map(name_groups(groups, truth, num_labels), path)
            self.results.append((measures, int((truth == IGNORE_INDEX).sum())))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        for key in results[0][0] if results else ():
            measures = [image[key] for image, _ in results]
            oracle = self._iou([measure.oracle for measure in measures])
            boundary = self._iou([measure.boundary for measure in measures])
            per_image = [_mean(measure.class_overlaps) for measure in measures if measure.class_overlaps]
            per_object = [value for measure in measures for value in measure.object_overlaps]
            metrics |= {
                f'{key}oracle_{name}': value for name, value in self._classes.summarize(oracle).items()
            }
            metrics |= {
                f'{key}oracle_boundary_mIoU': self._classes.summarize(boundary)['mIoU'],
                f'{key}class_IoU': _mean(per_image),
                f'{key}object_IoU': _mean(per_object),
                f'{key}used': _mean([measure.used for measure in measures]),
            }
            if not key:
                rows = [
                    {'name': name, 'oracle_IoU': or_none(value)}
                    for name, value in zip(self._classes.label_names, oracle)
                ]
        counts = [(image[''].oracle, ignored) for image, ignored in results]
        protocol = {'boundary': self.boundary, 'baseline_groups': self.baseline_groups}
        self.publish(
            {self._key(key): metrics[key] for key in metrics},
            {**self._describe(counts), **protocol},
            groups_per_class=rows,
        )
        shown = '  '.join(f'{self._key(key)} {value:.3f}' for key, value in metrics.items())
        MMLogger.get_current_instance().info(shown)
        return metrics

    def _iou(self, counts: Sequence[PixelCounts]) -> np.ndarray:
        """IoU of each label over a set, [num_labels]."""
        intersection, predicted, truth = sum_counts(counts, self._classes.num_labels)
        return divide(intersection, predicted + truth - intersection)


def measure_groups(
    groups: np.ndarray,
    truth: np.ndarray,
    num_labels: int,
    num_classes: int,
    boundary: float = 0.02,
    min_object: int = 1,
) -> GroupMeasures:
    """Compare the groups of an image with its true labels.

    Args:
        groups: group of each pixel, integers [H, W]; -1: none.
        truth: labels [H, W], or ``IGNORE_INDEX``.
        num_labels: of the truth, background included.
        num_classes: labels without background.
        boundary, min_object: see ``GroupingMetric``.
    """
    oracle = name_groups(groups, truth, num_labels)
    overlaps = _overlaps(groups, truth, num_labels)
    present = np.flatnonzero(overlaps.truth[:num_classes])
    best = overlaps.iou().max(axis=0, initial=0.0)
    return GroupMeasures(
        oracle=count_pixels(oracle, truth, num_labels),
        boundary=count_boundary_pixels(oracle, truth, boundary),
        class_overlaps=best[present].tolist(),
        object_overlaps=[
            value for label in present for value in _object_overlaps(groups, truth, label, min_object)
        ],
        used=len(overlaps.ids),
    )


def name_groups(groups: np.ndarray, truth: np.ndarray, num_labels: int) -> np.ndarray:
    """Oracle label map: each group takes its label of best IoU; int64 [H, W], -1 without a group.

    A group on ignored pixels only has no label.
    """
    overlaps = _overlaps(groups, truth, num_labels)
    names = np.full(int(groups.max(initial=-1)) + 2, IGNORE_INDEX, np.int64)
    if len(overlaps.ids):
        names[overlaps.ids] = overlaps.iou().argmax(axis=1)
    return names[groups]  # the last entry is for -1


class _Overlaps(NamedTuple):
    """Pixel counts of groups and labels, without ignored pixels.

    Attributes:
        ids: [N], groups with pixels.
        common: [N, L], intersections.
        truth: [L], pixels of each label.
    """

    ids: np.ndarray
    common: np.ndarray
    truth: np.ndarray

    def iou(self) -> np.ndarray:
        """Intersection over union, [N, L]."""
        return self.common / np.maximum(self.common.sum(axis=1, keepdims=True) + self.truth - self.common, 1)


def _overlaps(groups: np.ndarray, truth: np.ndarray, num_labels: int) -> _Overlaps:
    counted = truth != IGNORE_INDEX
    labels = np.bincount(truth[counted], minlength=num_labels)
    counted &= groups != IGNORE_INDEX
    ids, rows = np.unique(groups[counted], return_inverse=True)
    pairs = rows.reshape(-1) * num_labels + truth[counted]
    common = np.bincount(pairs, minlength=len(ids) * num_labels).reshape(len(ids), num_labels)
    return _Overlaps(ids, common, labels)


def _object_overlaps(groups: np.ndarray, truth: np.ndarray, label: int, min_object: int) -> list[float]:
    """IoU of the best group for each connected component of a class."""
    count, pieces = cv2.connectedComponents((truth == label).astype(np.uint8), connectivity=8)
    pieces = np.where(truth == IGNORE_INDEX, IGNORE_INDEX, pieces)  # component 0 is everything else
    overlaps = _overlaps(groups, pieces, count)
    best = overlaps.iou().max(axis=0, initial=0.0)
    return best[1:][overlaps.truth[1:] >= min_object].tolist()


def count_boundary_pixels(predicted: np.ndarray, truth: np.ndarray, width: float) -> PixelCounts:
    """As ``count_pixels``, of the pixels inside a label's mask and near its outline.

    The image border is an outline. Ignored pixels take the predicted label, so that a ring of ignored pixels
    around an object adds no outline.

    Args:
        width: maximum distance from the outline, as a fraction of the image diagonal.
    """
    distance = max(1, round(width * math.hypot(*truth.shape)))
    kernel = np.ones((2 * distance + 1,) * 2, np.uint8)
    counted = truth != IGNORE_INDEX
    filled = np.where(counted, truth, predicted)
    labels = np.union1d(predicted[counted], truth[counted])
    labels = labels[labels != IGNORE_INDEX]

    def edge(labels: np.ndarray, label: int) -> np.ndarray:
        mask = (labels == label).astype(np.uint8)
        inner = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        return (mask != inner) & counted

    rows = []
    for label in labels:
        ours, theirs = edge(predicted, label), edge(filled, label)
        rows.append([(ours & theirs).sum(), ours.sum(), theirs.sum()])
    table = np.array(rows, np.int64).reshape(-1, 3)
    return PixelCounts(labels.astype(np.int64), *table.T)


def uniform_grid(height: int, width: int, count: int) -> np.ndarray:
    """``count`` equal rectangles, as square as whole rows and columns of them can be; int64 [H, W]."""

    def elongation(rows: int) -> float:
        return abs(math.log(height / rows / (width / (count // rows))))

    rows = min((rows for rows in range(1, count + 1) if count % rows == 0), key=elongation)
    columns = count // rows
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    return row[:, None] * columns + column


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
