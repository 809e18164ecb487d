"""PASCAL VOC's mean average precision, at IoU 0.5 and 0.75, by area and by 11 points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import MMLogger

from ..registry import METRICS
from .average_precision import Detections
from .detection import AnnotationMetric, mean_of_present

_THRESHOLDS = {'AP50': 0.5, 'AP75': 0.75}


@METRICS.register_module()
class VOCMetric(AnnotationMetric):
    """mAP of VOC: ``AP50_area`` (VOC 2010 and later), ``AP50_11point`` (VOC 2007), and both at IoU 0.75.

    Difficult objects count neither as objects nor as false positives. Boxes are compared as continuous areas;
    since VOC boxes include their last pixel, this equals the development kit's comparison of pixels.

    Args:
        kwargs: see :class:`AnnotationMetric`; ``ann_file`` is a VOC image set or a COCO-style file.

    Source: Everingham et al., IJCV 2010, Sec. 4.2, and the development kit's ``VOCevaldet``.
    """

    default_prefix = 'voc'

    def score(
        self, content: dict[str, Any], detections: Detections
    ) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, Any]]:
        classes = self._classes
        rows = classes.rows(content, detections)
        values: dict[str, list[float]] = {
            f'{name}_{rule}': [] for name in _THRESHOLDS for rule in ('area', '11point')
        }
        for label in classes.scored:
            category = classes.category_ids[label]
            objects = [item for item in content['annotations'] if item['category_id'] == category]
            found = detections.select(detections.category_ids == category)
            for name, threshold in _THRESHOLDS.items():
                recall, precision = precision_recall(objects, found, threshold)
                values[f'{name}_area'].append(area_under_curve(recall, precision))
                values[f'{name}_11point'].append(eleven_point_precision(recall, precision))
            rows[label] |= {
                name: None if np.isnan(column[-1]) else column[-1] for name, column in values.items()
            }
        metrics = {name: mean_of_present(np.array(column)) for name, column in values.items()}
        if classes.groups['novel']:
            for group, labels in classes.groups.items():
                members = np.isin(classes.scored, labels)
                metrics |= {
                    f'{name}_{group}': mean_of_present(np.array(column)[members])
                    for name, column in values.items()
                }
        logger = MMLogger.get_current_instance()
        logger.info('  '.join(f'{key} {100 * value:.1f}' for key, value in metrics.items()))
        protocol = {
            'evaluator': 'PASCAL VOC rules',
            'max_detections': None,
            'iou_thresholds': list(_THRESHOLDS.values()),
        }
        return metrics, rows, protocol


def precision_recall(
    objects: Sequence[Mapping[str, Any]], detections: Detections, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of one class after each detection, in the order of decreasing score.

    A detection is assigned to the object it overlaps most: the first one that reaches ``iou`` is a true
    positive, later ones are false positives, and those of difficult objects are ignored.

    Args:
        objects: COCO-style annotations, optionally with ``difficult``.
    Returns:
        recall and precision [n] of the n detections that are not ignored; nan if there are no objects.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for item in objects:
        by_image.setdefault(item['image_id'], []).append(item)
    boxes = {image: np.array([item['bbox'] for item in items]) for image, items in by_image.items()}
    matched: set[tuple[int, int]] = set()
    is_true_positive = []
    for row in np.argsort(-detections.scores, kind='stable'):
        image = int(detections.image_ids[row])
        overlaps = _overlaps(detections.boxes[row], boxes[image]) if image in boxes else np.zeros(1)
        best = int(overlaps.argmax())
        if overlaps[best] < iou:
            is_true_positive.append(False)
        elif not by_image[image][best].get('difficult'):
            is_true_positive.append((image, best) not in matched)
            matched.add((image, best))
    num_objects = sum(not item.get('difficult') for item in objects)
    if not num_objects:
        return np.full(1, np.nan), np.full(1, np.nan)
    true_positives = np.cumsum(is_true_positive)
    return true_positives / num_objects, true_positives / np.arange(1, len(true_positives) + 1)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU [n] of an xywh box [4] with others [n, 4]."""
    corner = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    shared = (corner - np.maximum(box[:2], others[:, :2])).clip(min=0).prod(1)
    return shared / (box[2:].prod() + others[:, 2:].prod(1) - shared)


def area_under_curve(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the monotone precision-recall curve; recall [n], precision [n]."""
    if np.isnan(recall).any():
        return float('nan')
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * envelope).sum())


def eleven_point_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over r = 0, 0.1, ..., 1 of the best precision at recall >= r."""
    if np.isnan(recall).any():
        return float('nan')
    points = np.arange(11) / 10
    return float(np.mean([precision[recall >= point - 1e-9].max(initial=0) for point in points]))
