"""Few-shot segmentation metrics: mean class IoU and foreground-background IoU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import MMLogger

from ..datasets.segmentation.label_maps import IGNORE_INDEX
from ..registry import METRICS
from .reporting_metric import ReportingMetric
from .segmentation import check_labels, label_map_of

_LABELS = 2  # others, the class


@METRICS.register_module()
class FewShotMetric(ReportingMetric):
    """IoU over episodes of ``FewShotDataset``, as defined by HSNet.

    Intersection I and union U are summed per class, for foreground (the class) and background. Keys, after
    the prefix ``few_shot/``, as fractions: ``mIoU``, mean over ``episode_classes`` of I / max(U, 1) of the
    foreground (0 without an episode), and ``FB_IoU``, mean over foreground and background of (sum of I over
    classes) / (sum of U). Ignored pixels are excluded.

    The report has ``metrics``, ``per_class`` and ``protocol``.

    Args:
        kwargs: see ``ReportingMetric``.

    Source: HSNet (Min et al., ICCV 2021), its evaluation and average meter.
    """

    default_prefix = 'few_shot'

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        for key in ('classes', 'episode_classes'):
            if not dataset_meta.get(key):
                raise ValueError(f'FewShotMetric requires {key!r} in the metainfo of the data set')
        names = list(dataset_meta['classes'])
        self._classes = [names.index(name) for name in dataset_meta['episode_classes']]

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of a batch of episodes; labels are 1 on the class and 0 elsewhere."""
        for sample in data_samples:
            path = str(sample.get('img_path', 'an image without path'))
            if sample.get('class_id') not in self._classes:
                raise ValueError(
                    f'{path}: class_id {sample.get("class_id")!r} is not an episode class {self._classes}; '
                    f'meta_keys of PackSegInputs need class_id'
                )
            predicted = label_map_of(sample, 'pred_sem_seg', path)
            truth = label_map_of(sample, 'gt_sem_seg', path)
            if predicted.shape != truth.shape:
                raise ValueError(
                    f'{path}: predicted labels are {predicted.shape}, true ones {truth.shape} (H, W)'
                )
            check_labels('predicted', predicted, _LABELS, path)
            check_labels('true', truth, _LABELS, path)
            predicted, truth = predicted[truth != IGNORE_INDEX], truth[truth != IGNORE_INDEX]
            counts = [
                (int(((predicted == label) & (truth == label)).sum()), int((predicted == label).sum()))
                + (int((truth == label).sum()),)
                for label in range(_LABELS)
            ]
            self.results.append([int(sample['class_id']), counts])

    def compute_metrics(self, results: list[list[Any]]) -> dict[str, float]:
        meta = self.dataset_meta or {}
        names = list(meta['classes'])
        intersection, union = (np.zeros((_LABELS, len(names)), np.int64) for _ in range(2))
        episodes = np.zeros(len(names), np.int64)
        for label, counts in results:
            both, predicted, truth = np.array(counts).T
            intersection[:, label] += both
            union[:, label] += predicted + truth - both
            episodes[label] += 1
        iou = intersection / np.maximum(union, 1)
        over_classes = intersection[:, self._classes].sum(1) / np.maximum(union[:, self._classes].sum(1), 1)
        metrics = {'mIoU': float(iou[1, self._classes].mean()), 'FB_IoU': float(over_classes.mean())}
        rows = [
            {
                'name': names[label],
                'episodes': int(episodes[label]),
                'IoU': float(iou[1, label]),
                'IoU_others': float(iou[0, label]),
            }
            for label in self._classes
        ]
        protocol = {
            'annotations': meta.get('ann_file'),
            'fold': meta.get('fold'),
            'episodes': len(results),
            'classes': len(self._classes),
            'classes_without_episode': int((episodes[self._classes] == 0).sum()),
            'vocabulary_hash': meta.get('vocabulary_hash'),
        }
        self.publish({f'{self.prefix}/{key}': metrics[key] for key in metrics}, protocol, per_class=rows)
        table = ', '.join(f'{row["name"]} {100 * row["IoU"]:.1f}' for row in rows)
        MMLogger.get_current_instance().info(f'IoU per class in %: {table}')
        return metrics
