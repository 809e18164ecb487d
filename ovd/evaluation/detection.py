"""Detection metrics over base and novel classes, with a protocol of the evaluation."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from pycocotools import mask as mask_utils

from ..datasets.annotations import box_problem, match_categories, read_annotations
from ..datasets.masks import area_of, mask_problem
from ..files import require_file, sha256_file
from ..options import check_option
from ..registry import METRICS
from ..text.vocabulary import Vocabulary
from .average_precision import AREAS, IOU_THRESHOLDS, ClassScores, Detections, score_detections
from .reporting_metric import ReportingMetric

_MAX_CLASSES_ON_CONSOLE = 100


class AnnotationMetric(ReportingMetric):
    """Base of metrics that compare predictions with an annotation file, on the predicted images.

    The report has ``metrics``, ``per_class`` and ``protocol``.

    Args:
        ann_file: by default the file of the data set (``metainfo['ann_file']`` of ``OpenVocabularyDataset``).
        kwargs: see ``ReportingMetric``.
    """

    with_masks = False

    def __init__(self, ann_file: str | os.PathLike[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ann_file = ann_file

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        super().check_dataset(dataset_meta)
        file = self.ann_file or dataset_meta.get('ann_file')
        if file is None:
            raise ValueError(f'{type(self).__name__} needs an ann_file: the data set has none')
        require_file(file, f'annotation file of {type(self).__name__}')

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Store the predictions of a batch; boxes are xyxy in original pixels."""
        for sample in data_samples:
            self.results.append(_to_prediction(sample, with_masks=self.with_masks))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        assert self.dataset_meta is not None
        self._ann_file = str(self.ann_file or self.dataset_meta['ann_file'])
        predictions = {prediction['image_id']: prediction for prediction in results}
        content = read_annotations(self._ann_file)
        self._images_in_file = len(content['images'])
        if unknown := predictions.keys() - {image['id'] for image in content['images']}:
            raise ValueError(f'predictions of image {min(unknown)}, which is not in {self._ann_file}')
        for kind, key in (('images', 'id'), ('annotations', 'image_id')):
            content[kind] = [item for item in content[kind] if item[key] in predictions]
        meta = self.dataset_meta
        if self._ann_file != meta.get('ann_file'):  # they belong to the file of the data set
            meta = {key: value for key, value in meta.items() if key != 'category_ids'}
        self._classes = _Classes(meta, content['categories'])
        detections = self._classes.gather(predictions.values(), self.with_masks)
        metrics, per_class, protocol = self.score(content, detections)
        self.publish(metrics, {**self._describe(predictions), **protocol}, per_class=per_class)
        return metrics

    def score(
        self, content: dict[str, Any], detections: Detections
    ) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, Any]]:
        """Compute metrics, rows per class, and protocol entries.

        Args:
            content: annotation file with the predicted images only.
            detections: all detections; the category id is -1 for a class that is not in the file.
        """
        raise NotImplementedError

    def _describe(self, predictions: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Protocol entries that all metrics share."""
        assert self.dataset_meta is not None
        scores = np.concatenate([[], *(each['scores'] for each in predictions.values())])
        counts = [len(each['scores']) for each in predictions.values()]
        return {
            'annotations': self._ann_file,
            'annotations_sha256': sha256_file(self._ann_file),
            'images': len(predictions),
            'images_in_file': self._images_in_file,
            'split': self.dataset_meta.get('split'),
            'vocabulary_hash': self.dataset_meta.get('vocabulary_hash'),
            'classes_competing': len(self._classes.names),
            'classes_base': len(self._classes.groups['base']),
            'classes_novel': len(self._classes.groups['novel']),
            'detections': len(scores),
            'most_detections_in_an_image': max(counts, default=0),
            'lowest_score': float(scores.min()) if len(scores) else None,
        }


def mean_of_present(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


class _Classes:
    """Classes of a data set, their groups, and their category ids in an annotation file."""

    def __init__(self, meta: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]) -> None:
        self.names = list(meta['classes'])
        ids = meta.get('category_ids')
        if ids is None:
            matched = match_categories(Vocabulary(self.names), categories)
            by_label = {label: category for category, label in matched.items()}
            ids = [by_label.get(label) for label in range(len(self.names))]
        self.category_ids = list(ids)
        label_of = {name: label for label, name in enumerate(self.names)}
        novel = [label_of[name] for name in meta.get('novel_classes', ())]
        base = [label_of[name] for name in meta.get('base_classes', ())]
        if not base and not novel:
            base = list(range(len(self.names)))
        self.groups = {'base': sorted(base), 'novel': sorted(novel)}
        # Labels that are averaged: base or novel, and in the file.
        self.scored = [label for label in sorted(base + novel) if self.category_ids[label] is not None]

    def gather(self, predictions: Any, with_masks: bool) -> Detections:
        """Concatenate the predictions of all images."""
        ids = np.array([-1 if category is None else category for category in self.category_ids])
        items = list(predictions)
        empty = {'labels': np.zeros(0, int), 'scores': np.zeros(0), 'boxes': np.zeros((0, 4))}
        columns = {
            key: np.concatenate([value, *(item[key] for item in items)]) for key, value in empty.items()
        }
        boxes = columns['boxes'].astype(np.float64)
        return Detections(
            image_ids=np.repeat(
                np.array([item['image_id'] for item in items], dtype=int),
                [len(item['scores']) for item in items],
            ),
            category_ids=ids[columns['labels'].astype(int)],
            scores=columns['scores'].astype(np.float64),
            boxes=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            masks=[mask for item in items for mask in item['masks']] if with_masks else None,
        )

    def rows(self, content: Mapping[str, Any], detections: Detections) -> list[dict[str, Any]]:
        """Class table without scores; crowds are not counted."""
        group = {label: name for name, labels in self.groups.items() for label in labels}
        objects = Counter(item['category_id'] for item in content['annotations'] if not item.get('iscrowd'))
        found = Counter(detections.category_ids.tolist())
        return [
            {
                'name': name,
                'group': group.get(label, 'other'),
                'ground_truth': objects[category],
                'detections': found[category],
            }
            for label, (name, category) in enumerate(zip(self.names, self.category_ids))
        ]


def _to_prediction(sample: Mapping[str, Any], with_masks: bool) -> dict[str, Any]:
    """Predictions of one image as numpy arrays, masks as run-length encodings."""
    instances, image_id = sample['pred_instances'], sample['img_id']
    result = {
        'image_id': image_id,
        'boxes': torch.as_tensor(instances['bboxes']).detach().float().cpu().numpy().reshape(-1, 4),
        'scores': torch.as_tensor(instances['scores']).detach().float().cpu().numpy(),
        'labels': torch.as_tensor(instances['labels']).detach().cpu().numpy(),
    }
    if not np.isfinite(result['scores']).all() or not np.isfinite(result['boxes']).all():
        raise ValueError(f'predictions of image {image_id}: scores or boxes are not finite')
    if with_masks:
        result['masks'] = _encode_masks(instances['masks'])
    return result


def _encode_masks(masks: Any) -> list[Any]:
    """Convert masks [N, H, W] to N run-length encodings; pass encodings through."""
    if isinstance(masks, list):
        return masks
    array = torch.as_tensor(masks).detach().cpu().numpy().astype(np.uint8)
    if not array.size:
        return []
    return mask_utils.encode(np.asfortranarray(array.transpose(1, 2, 0)))


@METRICS.register_module()
class DetectionMetric(AnnotationMetric):
    """COCO's AP and AP50 over all, base and novel classes, for boxes and masks.

    Keys are ``bbox/AP``, ``bbox/AP50_base``, ``bbox/AP50_novel``, ``segm/AP`` and so on, in 0..1: means over
    the classes of a group with ground truth, nan if there are none. Classes of neither group are distractors
    and not averaged (COCO 48/17 with 80 classes).

    Args:
        metric: ``'bbox'``, ``'segm'`` or both.
        max_detections: per image and class.
        kwargs: see :class:`AnnotationMetric`.
    """

    style = 'COCO'
    limit = 'image and class'

    def __init__(
        self, metric: str | Sequence[str] = 'bbox', max_detections: int = 100, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.iou_types = [metric] if isinstance(metric, str) else list(metric)
        for iou_type in self.iou_types:
            check_option('metric', iou_type, ('bbox', 'segm'))
        self.max_detections = max_detections
        self.with_masks = 'segm' in self.iou_types

    def score(
        self, content: dict[str, Any], detections: Detections
    ) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, Any]]:
        classes = self._classes
        content = {**content, 'annotations': self._checked(content)}
        category_ids = [classes.category_ids[label] for label in classes.scored]
        rows = classes.rows(content, detections)
        metrics: dict[str, float] = {}
        for iou_type in self.iou_types:
            scores = self._match(content, detections, category_ids, iou_type)
            metrics |= {f'{iou_type}/{key}': value for key, value in self.summarize(scores, content).items()}
            for key, iou in (('AP', None), ('AP50', 0.5), ('AP75', 0.75)):
                for label, value in zip(classes.scored, scores.average_precision(iou)):
                    rows[label][f'{iou_type}_{key}'] = None if math.isnan(value) else float(value)
        self._log(metrics, rows)
        protocol = {
            'evaluator': f'faster-coco-eval {version("faster-coco-eval")}, {self.style} rules',
            'max_detections': self.max_detections,
            'max_detections_per': self.limit,
            'iou_thresholds': IOU_THRESHOLDS.round(2).tolist(),
        }
        return metrics, rows, protocol

    def _checked(self, content: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Annotations with ``area``: that of the mask where the file gives none, or else of the box."""
        sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
        checked = []
        for item in content['annotations']:
            size, source = sizes[item['image_id']], f'{self._ann_file}: annotation {item["id"]}'
            if problem := box_problem(item.get('bbox')):
                raise ValueError(f'{source}: box {item.get("bbox")} {problem}')
            if self.with_masks and (problem := mask_problem(item.get('segmentation'), *size)):
                raise ValueError(f"metric 'segm': {source}: its mask {problem}")
            checked.append({**item, 'area': area_of(item, *size)})
        return checked

    def _match(
        self, content: dict[str, Any], detections: Detections, category_ids: Sequence[Any], iou_type: str
    ) -> ClassScores:
        return score_detections(content, detections, category_ids, iou_type, self.max_detections)

    def summarize(self, scores: ClassScores, content: Mapping[str, Any]) -> dict[str, float]:
        """Means over classes, by metric name."""
        result = {
            'AP': mean_of_present(scores.average_precision()),
            'AP50': mean_of_present(scores.average_precision(0.5)),
            'AP75': mean_of_present(scores.average_precision(0.75)),
            **{f'AP_{area}': mean_of_present(scores.average_precision(area=area)) for area in AREAS[1:]},
            f'AR@{self.max_detections}': mean_of_present(scores.average_recall()),
        }
        if self._classes.groups['novel']:
            for group, labels in self._classes.groups.items():
                members = np.isin(self._classes.scored, labels)
                for key, iou in (('AP', None), ('AP50', 0.5)):
                    result[f'{key}_{group}'] = mean_of_present(scores.average_precision(iou)[members])
        return result

    def _log(self, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
        logger = MMLogger.get_current_instance()
        for iou_type in self.iou_types:
            if len(rows) <= _MAX_CLASSES_ON_CONSOLE:
                logger.info(f'{iou_type} per class, in percent\n{_class_table(rows, iou_type)}')
            values = {key: value for key, value in metrics.items() if key.startswith(iou_type)}
            logger.info('  '.join(f'{key} {100 * value:.1f}' for key, value in values.items()))


def _class_table(rows: Sequence[Mapping[str, Any]], iou_type: str) -> str:
    width = max(len(row['name']) for row in rows)
    lines = [f'{"class":{width}}  {"group":5}  {"boxes":>6}  {"AP":>5}  {"AP50":>5}']
    for row in rows:
        values = (row.get(f'{iou_type}_{key}') for key in ('AP', 'AP50'))
        cells = '  '.join(f'{"-":>5}' if value is None else f'{100 * value:5.1f}' for value in values)
        lines.append(f'{row["name"]:{width}}  {row["group"]:5}  {row["ground_truth"]:6d}  {cells}')
    return '\n'.join(lines)


@METRICS.register_module()
class LVISMetric(DetectionMetric):
    """LVIS's AP, with APr, APc and APf over rare, common and frequent classes.

    Args:
        max_detections: best per image over all classes; without effect on ``fixed_ap``.
        fixed_ap: keep the best ``max_per_class`` detections of each class over the whole set instead. The
            model must then hand over many more detections than 300 per image.
        max_per_class: for ``fixed_ap``.
        kwargs: see :class:`DetectionMetric`.

    As in the LVIS API, annotations with ``ignore`` count neither as found nor as missed, ``iscrowd`` has no
    effect, and annotations of area 0 do not exist.

    Source: Gupta et al., CVPR 2019 and the LVIS API 0.5.3; fixed AP: Dave et al., 2021, Sec. 4.
    """

    style = 'LVIS'
    limit = 'image'

    def __init__(
        self,
        metric: str | Sequence[str] = ('bbox', 'segm'),
        max_detections: int = 300,
        fixed_ap: bool = False,
        max_per_class: int = 10000,
        **kwargs: Any,
    ) -> None:
        super().__init__(metric, max_per_class if fixed_ap else max_detections, **kwargs)
        self.fixed_ap = fixed_ap
        if fixed_ap:
            self.style, self.limit = 'LVIS fixed AP', 'class'

    def _match(
        self, content: dict[str, Any], detections: Detections, category_ids: Sequence[Any], iou_type: str
    ) -> ClassScores:
        if not all('frequency' in category for category in content['categories']):
            raise ValueError(f'{self._ann_file} is not an LVIS file: its categories have no `frequency`')
        content = {
            **content,
            'annotations': [_to_lvis(item) for item in content['annotations'] if item['area'] > 0],
        }
        column = detections.category_ids if self.fixed_ap else detections.image_ids
        best = detections.best_per(column, self.max_detections)
        return score_detections(content, best, category_ids, iou_type, self.max_detections, federated=True)

    def summarize(self, scores: ClassScores, content: Mapping[str, Any]) -> dict[str, float]:
        result = super().summarize(scores, content)
        frequency = {category['id']: category.get('frequency') for category in content['categories']}
        found = np.array([frequency[self._classes.category_ids[label]] for label in self._classes.scored])
        for key in 'rcf':
            result[f'AP{key}'] = mean_of_present(scores.average_precision()[found == key])
        return result


def _to_lvis(annotation: dict[str, Any]) -> dict[str, Any]:
    """Annotation for LVIS's rules; ``ignore`` becomes an area outside all ranges, not a crowd."""
    return {**annotation, 'iscrowd': 0, 'area': -1.0 if annotation.get('ignore') else annotation['area']}
