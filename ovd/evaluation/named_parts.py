"""A metric per data set, and the mean over data sets."""

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MMLogger

from ..registry import METRICS
from .reporting_metric import ReportingMetric, or_none


@METRICS.register_module()
class NamedPartsMetric(ReportingMetric):
    """One metric per part of ``ovd.NamedParts``, and the unweighted mean and median over parts.

    Keys are ``<part>/<key>``, ``mean/<key>`` and ``median/<key>``, over parts with a value. If data sets are
    missing, the last two tell the number of parts: ``mean_of_11/<key>``. The report has ``metrics``,
    ``per_part`` (metrics and protocol of each) and ``protocol``.

    Args:
        metric: config of a ``ReportingMetric``; one is built for each part.
        kwargs: see ``ReportingMetric``.
    """

    def __init__(self, metric: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metric = dict(metric)
        self._metrics: dict[str, ReportingMetric] = {}

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        """Build the metric of each part, which checks its metainfo."""
        if 'parts' not in dataset_meta:
            raise ValueError('NamedPartsMetric needs the data set ovd.NamedParts')
        self._metrics = {}
        for name, meta in dataset_meta['parts'].items():
            self._metrics[name] = METRICS.build(copy.deepcopy(self.metric))
            self._metrics[name].dataset_meta = meta

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Store (part, results of its metric) of each sample."""
        for sample in data_samples:
            metric = self._metrics[sample['part']]
            metric.process(data_batch, [sample])
            self.results.append((sample['part'], metric.results))
            metric.results = []

    def compute_metrics(self, results: list[tuple[str, list[Any]]]) -> dict[str, float]:
        assert self.dataset_meta is not None
        by_part: dict[str, list[Any]] = {name: [] for name in self._metrics}
        for name, kept in results:
            by_part[name] += kept
        metrics: dict[str, float] = {}
        rows = []
        columns: dict[str, list[float]] = {}
        logger = MMLogger.get_current_instance()
        for name, metric in self._metrics.items():
            logger.info(f'{name}:')
            found = metric.compute_metrics(by_part[name])
            metrics |= {f'{name}/{key}': value for key, value in found.items()}
            for key, value in found.items():
                columns.setdefault(key, [])
                if value == value:  # not nan
                    columns[key].append(value)
            rows.append(
                {
                    'part': name,
                    **{key: or_none(value) for key, value in found.items()},
                    'protocol': metric.report['protocol'],
                }
            )
        missing = self.dataset_meta['missing_parts']
        suffix = f'_of_{len(rows)}' if missing else ''
        for title, function in (('mean', statistics.fmean), ('median', statistics.median)):
            metrics |= {
                f'{title}{suffix}/{key}': function(values) if values else float('nan')
                for key, values in columns.items()
            }
        self.publish(
            metrics,
            {'parts': list(self._metrics), 'missing_parts': dict(missing), 'metric': self.metric['type']},
            per_part=rows,
        )
        return metrics
