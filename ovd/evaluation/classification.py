"""Zero-shot accuracy of a CLIP on labelled regions, over all, base and novel classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MMLogger

from ..registry import METRICS
from .reporting_metric import ReportingMetric


@METRICS.register_module()
class ZeroShotAccuracy(ReportingMetric):
    """Share of regions whose best-scoring class is correct.

    Metrics: ``accuracy``, ``accuracy_base``, ``accuracy_novel`` with the mean of all views of a region,
    ``accuracy_one_view`` with its first view only, and ``accuracy_worst_class``; in 0..1, nan if there is no
    region. The report has ``metrics``, ``per_class`` and ``protocol``.

    Args:
        kwargs: see ``ReportingMetric``.
    """

    default_prefix = 'zero_shot'

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Store per image a list of (label, predicted class, prediction of the first view) of its regions."""
        for sample in data_samples:
            columns = sample['labels'], sample['scores'].argmax(1), sample['view_scores'].argmax(1)
            self.results.append(list(zip(*(column.tolist() for column in columns))))

    def compute_metrics(self, results: list[list[tuple[int, int, int]]]) -> dict[str, float]:
        meta = self.dataset_meta or {}
        novel = set(meta.get('novel_classes', ()))
        regions = [region for image in results for region in image]
        rows = [
            {
                'name': name,
                'novel': name in novel,
                'regions': sum(truth == label for truth, _, _ in regions),
                'correct': sum(truth == label == predicted for truth, predicted, _ in regions),
            }
            for label, name in enumerate(meta['classes'])
        ]
        metrics = {
            'accuracy': _accuracy(rows),
            'accuracy_base': _accuracy([row for row in rows if not row['novel']]),
            'accuracy_novel': _accuracy([row for row in rows if row['novel']]),
            'accuracy_one_view': _share(sum(truth == first for truth, _, first in regions), len(regions)),
            'accuracy_worst_class': min(
                (_accuracy([row]) for row in rows if row['regions']), default=float('nan')
            ),
        }
        protocol = {
            'annotations': meta.get('ann_file'),
            'images': len(results),
            'regions': len(regions),
            'classes_competing': len(rows),
            'vocabulary_hash': meta.get('vocabulary_hash'),
            'crops': meta.get('crops'),
        }
        per_class = [{**row, 'accuracy': _accuracy([row])} for row in rows if row['regions']]
        self.publish(metrics, protocol, per_class=per_class)
        table = ', '.join(f'{row["name"]} {100 * _accuracy([row]):.0f}' for row in rows if row['regions'])
        MMLogger.get_current_instance().info(f'accuracy per class in %: {table}')
        return metrics


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    return _share(sum(row['correct'] for row in rows), sum(row['regions'] for row in rows))


def _share(correct: int, total: int) -> float:
    return correct / total if total else float('nan')
