"""Base class of metrics with a report: metrics, tables, and the protocol of the evaluation."""

import math
import os
from collections.abc import Mapping
from typing import Any

from mmengine.evaluator import BaseMetric

from ..files import write_json


class ReportingMetric(BaseMetric):
    """Base of metrics that report their protocol.

    After ``evaluate``, the main process has ``report``: ``metrics``, tables such as ``per_class``, and
    ``protocol`` as JSON values, also written to ``out_file`` if given.

    Args:
        out_file: JSON file for the report.
        protocol: further entries of the protocol, such as templates or checkpoint.
        prefix: prefix of all keys, before a slash; by default that of the class.
        kwargs: see ``mmengine.evaluator.BaseMetric``.
    """

    def __init__(
        self,
        out_file: str | os.PathLike[str] | None = None,
        protocol: Mapping[str, Any] | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        prefix = prefix or self.default_prefix
        super().__init__(prefix=prefix or type(self).__name__, **kwargs)
        self.prefix = prefix  # after the base class, which warns about None
        self.out_file = out_file
        self.protocol = dict(protocol or {})
        self.report: dict[str, Any] = {}

    @property
    def dataset_meta(self) -> dict[str, Any] | None:
        """Metainfo of the data set; checked when set, that is, before prediction."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict[str, Any] | None) -> None:
        if dataset_meta is not None:
            self.check_dataset(dataset_meta)
        self._dataset_meta = dataset_meta

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        """Raise ValueError if the metainfo lacks what the metric needs."""
        if not dataset_meta.get('classes'):
            raise ValueError(f"{type(self).__name__} needs the 'classes' of the data set's metainfo")

    def publish(
        self, metrics: Mapping[str, float], protocol: Mapping[str, Any], **tables: list[dict[str, Any]]
    ) -> None:
        """Make the report; write it to ``out_file``."""
        self.report = {
            'metrics': {key: or_none(value) for key, value in metrics.items()},
            **tables,
            'protocol': {**protocol, **self.protocol},
        }
        if self.out_file is not None:
            write_json(self.out_file, self.report)


def or_none(value: float) -> float | None:
    """Convert nan to None, for JSON."""
    return None if math.isnan(value) else float(value)
