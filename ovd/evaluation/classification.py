"""Zero-shot accuracy of a CLIP on labelled regions, over all, base and novel classes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from ovd.files import write_json
from ovd.registry import METRICS


@METRICS.register_module()
class ZeroShotAccuracy(BaseMetric):
    """Share of regions whose best-scoring class is the right one.

    Metrics: ``accuracy``, ``accuracy_base``, ``accuracy_novel`` over the mean of all views of a region,
    ``accuracy_one_view`` of its first view alone, and ``accuracy_worst_class``; fractions in 0..1, nan where
    there is no region. After ``evaluate``, the main process has ``report``: ``metrics``, ``per_class`` and
    ``protocol`` as JSON values, written to ``out_file`` if there is one.

    Args:
        out_file: where the report goes.
        protocol: entries to add to the report's protocol.
        kwargs: see ``mmengine.evaluator.BaseMetric``.
    """

    default_prefix = 'zero_shot'

    def __init__(
        self,
        out_file: str | os.PathLike[str] | None = None,
        protocol: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.out_file = out_file
        self.protocol = dict(protocol or {})
        self.report: dict[str, Any] = {}

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep one list per image: (label, predicted class, predicted class of the first view) by region."""
        for sample in data_samples:
            columns = sample['labels'], sample['scores'].argmax(1), sample['view_scores'].argmax(1)
            self.results.append(list(zip(*(column.tolist() for column in columns))))

    def compute_metrics(self, results: list[list[tuple[int, int, int]]]) -> dict[str, float]:
        meta = self.dataset_meta or {}
        if not meta.get('classes'):
            raise ValueError("ZeroShotAccuracy needs the 'classes' of the data set's metainfo")
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
        self.report = {
            'metrics': {key: None if value != value else value for key, value in metrics.items()},
            'per_class': [
                {**row, 'accuracy': _share(row['correct'], row['regions'])} for row in rows if row['regions']
            ],
            'protocol': {
                'annotations': meta.get('ann_file'),
                'images': len(results),
                'regions': len(regions),
                'classes_competing': len(rows),
                'vocabulary_hash': meta.get('vocabulary_hash'),
                'crops': meta.get('crops'),
                **self.protocol,
            },
        }
        if self.out_file is not None:
            write_json(self.out_file, self.report)
        table = ', '.join(f'{row["name"]} {100 * _accuracy([row]):.0f}' for row in rows if row['regions'])
        MMLogger.get_current_instance().info(f'accuracy per class in %: {table}')
        return metrics


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    return _share(sum(row['correct'] for row in rows), sum(row['regions'] for row in rows))


def _share(correct: int, total: int) -> float:
    return correct / total if total else float('nan')
