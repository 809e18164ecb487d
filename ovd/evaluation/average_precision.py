"""Average precision per class of boxes or masks, with the rules of COCO or LVIS.

faster-coco-eval does the matching; tests compare it with pycocotools and the LVIS API. Classes are scored a
few at a time, on the images that have objects or detections of them, to limit memory for large vocabularies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval.core import mask as mask_utils
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ('all', 'small', 'medium', 'large')
_CLASSES_PER_PASS = 64


@dataclass(frozen=True)
class Detections:
    """N detections of a data set as columns.

    ``boxes`` [N, 4] are xywh in original pixels; ``masks`` are N run-length encodings or ``None``.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: Sequence[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: np.ndarray) -> 'Detections':
        """Select rows by a boolean mask or an index array."""
        masks = None
        if self.masks is not None:
            indices = np.flatnonzero(rows) if rows.dtype == bool else rows
            masks = [self.masks[index] for index in indices]
        return Detections(
            self.image_ids[rows], self.category_ids[rows], self.scores[rows], self.boxes[rows], masks
        )

    def best_per(self, column: np.ndarray, count: int) -> 'Detections':
        """The ``count`` highest scores for each value of ``column`` [N]; ties in their order."""
        order = np.lexsort((np.arange(len(self)), -self.scores, column))
        groups = column[order]
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(self) else np.zeros(0, int)
        sizes = np.diff(np.r_[starts, len(self)])
        rank = np.arange(len(self)) - np.repeat(starts, sizes)
        return self.select(order[rank < count])


@dataclass(frozen=True)
class ClassScores:
    """Precision and recall of C classes; nan for classes without ground truth.

    ``precision`` [T, R, C, A] at T IoU thresholds, R = 101 recall points and A areas; ``recall`` [T, C, A].
    """

    precision: np.ndarray
    recall: np.ndarray

    def average_precision(self, iou: float | None = None, area: str = 'all') -> np.ndarray:
        """AP per class [C], averaged over the IoU thresholds or at one of them."""
        thresholds = slice(None) if iou is None else np.isclose(IOU_THRESHOLDS, iou)
        return self.precision[thresholds, :, :, AREAS.index(area)].mean((0, 1))

    def average_recall(self) -> np.ndarray:
        """Recall per class [C], averaged over the IoU thresholds."""
        return self.recall[:, :, AREAS.index('all')].mean(0)


def score_detections(
    ground_truth: Mapping[str, Sequence[Mapping[str, Any]]],
    detections: Detections,
    category_ids: Sequence[int],
    iou_type: str = 'bbox',
    max_detections: int = 100,
    federated: bool = False,
) -> ClassScores:
    """Match detections with the ground truth; compute precision and recall.

    Args:
        ground_truth: content of a COCO or LVIS file, with only the images to evaluate; see
            ``read_annotations``.
        detections: of these images.
        category_ids: the C classes to score, in the order of the result.
        iou_type: ``'bbox'`` or ``'segm'``.
        max_detections: per image and class, COCO's rule. LVIS limits the detections of an image before; see
            ``Detections.best_per``.
        federated: LVIS's rule: detections count only on images where their class is known to be present or
            absent, and false positives not where the class is labelled incompletely.

    Source: Lin et al., ECCV 2014; Gupta et al., CVPR 2019, Sec. 3.
    """
    if federated:
        detections = detections.select(_is_checked(ground_truth, detections))
    by_category: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in ground_truth['annotations']:
        by_category.setdefault(annotation['category_id'], []).append(annotation)
    categories = {category['id']: category for category in ground_truth['categories']}
    order = np.argsort(category_ids, kind='stable')
    precision = np.full((len(IOU_THRESHOLDS), 101, len(order), len(AREAS)), np.nan)
    recall = np.full((len(IOU_THRESHOLDS), len(order), len(AREAS)), np.nan)
    for start in range(0, len(order), _CLASSES_PER_PASS):
        columns = order[start : start + _CLASSES_PER_PASS]
        ids = [category_ids[column] for column in columns]
        objects = [annotation for category in ids for annotation in by_category.get(category, ())]
        if not objects:
            continue
        found = detections.select(np.isin(detections.category_ids, ids))
        relevant = {annotation['image_id'] for annotation in objects} | set(found.image_ids.tolist())
        images = [image for image in ground_truth['images'] if image['id'] in relevant]
        part = {'images': images, 'annotations': objects, 'categories': [categories[each] for each in ids]}
        values = _evaluate(part, found, ids, iou_type, max_detections, federated)
        precision[:, :, columns], recall[:, columns] = values
    precision[precision < 0] = np.nan
    recall[recall < 0] = np.nan
    return ClassScores(precision, recall)


def _is_checked(
    ground_truth: Mapping[str, Sequence[Mapping[str, Any]]], detections: Detections
) -> np.ndarray:
    """Whether the class of a detection is annotated as present or absent in its image, bool [N]."""
    known = {(item['image_id'], item['category_id']) for item in ground_truth['annotations']}
    for image in ground_truth['images']:
        known.update((image['id'], category) for category in image.get('neg_category_ids', ()))
    pairs = zip(detections.image_ids.tolist(), detections.category_ids.tolist())
    return np.array([pair in known for pair in pairs], dtype=bool)


def _evaluate(
    part: dict[str, Any],
    detections: Detections,
    category_ids: list[int],
    iou_type: str,
    max_detections: int,
    federated: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, c, A] and recall [T, c, A] of sorted category ids; -1 without ground truth."""
    # New ids from 1 on: the matching uses the id 0 for "unmatched".
    objects = [
        {'iscrowd': 0, **item, 'id': number} for number, item in enumerate(part['annotations'], start=1)
    ]
    header = {'images': part['images'], 'categories': part['categories']}
    evaluator = COCOeval_faster(
        COCO({**header, 'annotations': objects}),
        COCO({**header, 'annotations': _to_annotations(detections, iou_type)}),
        iou_type,
        lvis_style=federated,
    )
    evaluator.params.catIds = category_ids
    evaluator.params.maxDets = [max_detections]
    evaluator.params.iouThrs = IOU_THRESHOLDS
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval['precision'][..., -1], evaluator.eval['recall'][..., -1]


def _to_annotations(detections: Detections, iou_type: str) -> list[dict[str, Any]]:
    """Detections as COCO annotations; the area is that of the mask for ``iou_type='segm'``."""
    rows = zip(
        detections.image_ids.tolist(),
        detections.category_ids.tolist(),
        detections.scores.tolist(),
        detections.boxes.tolist(),
    )
    result = [
        {
            'id': number,
            'image_id': image_id,
            'category_id': category_id,
            'score': score,
            'bbox': box,
            'area': box[2] * box[3],
            'iscrowd': 0,
        }
        for number, (image_id, category_id, score, box) in enumerate(rows, start=1)
    ]
    if iou_type == 'segm':
        assert detections.masks is not None
        for row, mask in zip(result, detections.masks):
            row.update(segmentation=mask, area=float(mask_utils.area(mask)))
    return result
