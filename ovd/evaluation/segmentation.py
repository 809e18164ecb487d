"""Segmentation metrics: IoU over all, seen and unseen classes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger

from ..datasets.segmentation.label_maps import IGNORE_INDEX, write_label_map
from ..registry import METRICS
from .detection import mean_of_present
from .reporting_metric import ReportingMetric, or_none

_MAX_CLASSES_ON_CONSOLE = 200


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Pixel counts of one image for the L labels that occur in it; int64 [L] each.

    Not a named tuple, since mmengine converts those to tuples when gathering results.
    """

    labels: np.ndarray
    intersection: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray


def sum_counts(counts: Iterable[PixelCounts], num_labels: int) -> np.ndarray:
    """Sums over images: intersection, predicted and truth of each label, int64 [3, num_labels]."""
    table = np.zeros((3, num_labels), np.int64)
    for image in counts:
        table[:, image.labels] += np.stack([image.intersection, image.predicted, image.truth])
    return table


def count_pixels(predicted: np.ndarray, truth: np.ndarray, num_labels: int) -> PixelCounts:
    """Count the pixels of a predicted and a true label map, where the truth is not ignored.

    Args:
        predicted, truth: integers [H, W] below ``num_labels``, or ``IGNORE_INDEX``, which as a prediction is
            no class.
    """
    counted = truth != IGNORE_INDEX
    predicted, truth = predicted[counted], truth[counted]
    columns = [
        np.bincount(labels[labels != IGNORE_INDEX], minlength=num_labels)
        for labels in (truth[predicted == truth], predicted, truth)
    ]
    present = np.flatnonzero(columns[1] + columns[2])
    return PixelCounts(present, *(column[present] for column in columns))


@METRICS.register_module()
class SegmentationMetric(ReportingMetric):
    """Mean IoU over all, seen and unseen classes of ``OpenVocabularySegDataset``.

    Intersections and unions are summed over the data set, without ignored pixels. Keys, after the prefix
    ``seg/``, as fractions, nan if empty: ``mIoU`` (all annotated classes, and background if it is a class),
    ``mIoU_foreground`` (without background), ``IoU_background``, ``mIoU_seen``, ``mIoU_unseen`` and their
    harmonic mean ``hIoU``, ``mAcc`` (mean recall of classes with pixels) and ``aAcc`` (pixel accuracy). A
    class that is neither present nor predicted has no IoU; classes that are not annotated are distractors.

    The report has ``metrics``, ``per_class`` and ``protocol``.

    Args:
        save_maps: folder for predicted maps, ``<folder of the image>/<stem>.png``, see ``write_label_map``.
        kwargs: see ``ReportingMetric``.
    """

    default_prefix = 'seg'

    def __init__(self, save_maps: str | os.PathLike[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_maps = save_maps

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        super().check_dataset(dataset_meta)
        self._classes = LabelSet(dataset_meta)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of a batch; ``pred_sem_seg`` and ``gt_sem_seg`` are [1, H, W] in one frame."""
        for sample in data_samples:
            path = str(sample.get('img_path', 'an image without path'))
            predicted = label_map_of(sample, 'pred_sem_seg', path)
            truth = label_map_of(sample, 'gt_sem_seg', path)
            if predicted.shape != truth.shape:
                raise ValueError(
                    f'{path}: predicted labels are {predicted.shape}, true ones {truth.shape} (H, W); a test '
                    f'pipeline must load labels after resizing the image'
                )
            highest = len(self._classes.names)
            check_labels('predicted', predicted, highest + 1, path)
            check_labels('true', truth, self._classes.num_labels, path)
            self.save_map(predicted, path)
            counts = count_pixels(predicted, truth, highest + 1)
            self.results.append((counts, int((truth == IGNORE_INDEX).sum())))

    def save_map(self, labels: np.ndarray, path: str) -> None:
        """Write the labels [H, W] of the image at ``path`` to ``save_maps``, if given."""
        if self.save_maps is not None:
            file = Path(self.save_maps) / Path(path).parent.name / f'{Path(path).stem}.png'
            write_label_map(file, labels, len(self._classes.names) + 1)

    def compute_metrics(self, results: list[tuple[PixelCounts, int]]) -> dict[str, float]:
        classes = self._classes
        table = sum_counts((counts for counts, _ in results), len(classes.names) + 1)
        intersection, predicted, truth = table[:, : classes.num_labels]
        iou = divide(intersection, predicted + truth - intersection)
        accuracy = divide(intersection, truth)
        metrics = classes.summarize(iou) | {
            'mAcc': mean_of_present(accuracy[classes.scored]),
            'aAcc': float(divide(intersection.sum(), truth.sum())),
        }
        rows = [
            {
                'name': name,
                'group': group,
                'IoU': or_none(iou[label]),
                'accuracy': or_none(accuracy[label]),
                'ground_truth': int(truth[label]),
                'predicted': int(predicted[label]),
            }
            for label, (name, group) in enumerate(zip(classes.label_names, classes.groups))
        ]
        self.publish(
            {self._key(key): metrics[key] for key in metrics}, self._describe(results), per_class=rows
        )
        logger = MMLogger.get_current_instance()
        if len(rows) <= _MAX_CLASSES_ON_CONSOLE:
            logger.info(f'IoU and accuracy per class, in percent\n{_class_table(rows)}')
        logger.info('  '.join(f'{self._key(key)} {100 * value:.1f}' for key, value in metrics.items()))
        return metrics

    def _key(self, key: str) -> str:
        return f'{self.prefix}/{key}'

    def _describe(self, results: Sequence[tuple[PixelCounts, int]]) -> dict[str, Any]:
        meta, classes = self.dataset_meta or {}, self._classes
        return {
            'annotations': meta.get('ann_file'),
            'images': len(results),
            'pixels': int(sum(counts.truth.sum() for counts, _ in results)),
            'pixels_ignored': int(sum(ignored for _, ignored in results)),
            'vocabulary_hash': meta.get('vocabulary_hash'),
            'classes_competing': len(classes.names),
            'classes_seen': classes.groups.count('seen'),
            'classes_unseen': classes.groups.count('unseen'),
            'background': classes.background,
            'background_in_mIoU': classes.background == 'class',
        }


class LabelSet:
    """Labels of a data set by group (seen, unseen, other, background); background is the last."""

    def __init__(self, meta: Mapping[str, Any]) -> None:
        self.names = list(meta['classes'])
        self.background = meta.get('background', 'none')
        unseen = set(meta.get('unseen_classes', ()))
        annotated = set(meta.get('annotated_classes', self.names))
        self.groups = [
            'other' if name not in annotated else 'unseen' if name in unseen else 'seen'
            for name in self.names
        ]
        self.label_names = list(self.names)
        if self.background == 'class':
            self.label_names.append('background')
            self.groups.append('background')
        self.num_labels = len(self.label_names)
        self.scored = self.members('seen', 'unseen', 'background')

    def members(self, *groups: str) -> np.ndarray:
        """Labels of these groups, bool [num_labels]."""
        return np.isin(self.groups, groups)

    def summarize(self, iou: np.ndarray) -> dict[str, float]:
        """Mean IoUs by metric name, from IoU [num_labels]."""
        seen, unseen = (mean_of_present(iou[self.members(group)]) for group in ('seen', 'unseen'))
        result = {'mIoU': mean_of_present(iou[self.scored])}
        if self.background == 'class':
            result['mIoU_foreground'] = mean_of_present(iou[self.members('seen', 'unseen')])
            result['IoU_background'] = float(iou[-1])
        if 'unseen' in self.groups:
            harmonic = 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else seen + unseen
            result |= {'mIoU_seen': seen, 'mIoU_unseen': unseen, 'hIoU': harmonic}
        return result


def label_map_of(sample: Mapping[str, Any], key: str, path: str) -> np.ndarray:
    """Label map [H, W] of a data sample."""
    if key not in sample:
        raise ValueError(f'{path} has no {key}')
    labels = torch.as_tensor(sample[key]['data']).detach().cpu().numpy()
    if labels.ndim == 3 and len(labels) == 1:
        labels = labels[0]
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'{path}: {key} is {labels.dtype} {labels.shape}, expected integers [1, H, W]')
    return labels


def check_labels(what: str, labels: np.ndarray, limit: int, path: str) -> None:
    """Raise ValueError unless labels are ``IGNORE_INDEX`` .. ``limit - 1``."""
    if labels.size and not IGNORE_INDEX <= labels.min() <= labels.max() < limit:
        raise ValueError(
            f'{path}: {what} labels are {labels.min()} to {labels.max()}, expected {IGNORE_INDEX} to '
            f'{limit - 1}'
        )


def divide(numerator: Any, denominator: Any) -> np.ndarray:
    """Quotient, nan where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    width = max(len(row['name']) for row in rows)
    lines = [f'{"class":{width}}  {"group":10}  {"IoU":>5}  {"acc":>5}']
    for row in rows:
        cells = '  '.join(
            f'{"-":>5}' if row[key] is None else f'{100 * row[key]:5.1f}' for key in ('IoU', 'accuracy')
        )
        lines.append(f'{row["name"]:{width}}  {row["group"]:10}  {cells}')
    return '\n'.join(lines)
