"""What every metric of ours leaves behind: metrics, tables, and the protocol they were taken under."""

import math
import os
from collections.abc import Mapping
from typing import Any

from mmengine.evaluator import BaseMetric

from ..files import write_json


class ReportingMetric(BaseMetric):
    """Base of metrics that explain themselves.

    After ``evaluate``, the main process has ``report``: ``metrics``, tables such as ``per_class``, and
    ``protocol`` as JSON values, written to ``out_file`` if there is one.

    Args:
        out_file: where the report goes.
        protocol: entries to add to the report's protocol, such as templates or checkpoint.
        prefix: in front of every key, before a slash; by default that of the class.
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
        self.prefix = prefix  # the base class warns about none
        self.out_file = out_file
        self.protocol = dict(protocol or {})
        self.report: dict[str, Any] = {}

    @property
    def dataset_meta(self) -> dict[str, Any] | None:
        """What the data set says of itself; checked when it is set, before hours of prediction."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict[str, Any] | None) -> None:
        if dataset_meta is not None:
            self.check_dataset(dataset_meta)
        self._dataset_meta = dataset_meta

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        """Refuse a data set that cannot be scored; the message says what it lacks."""
        if not dataset_meta.get('classes'):
            raise ValueError(f"{type(self).__name__} needs the 'classes' of the data set's metainfo")

    def publish(
        self, metrics: Mapping[str, float], protocol: Mapping[str, Any], **tables: list[dict[str, Any]]
    ) -> None:
        """Make the report, and write it where a file is wanted."""
        self.report = {
            'metrics': {key: or_none(value) for key, value in metrics.items()},
            **tables,
            'protocol': {**protocol, **self.protocol},
        }
        if self.out_file is not None:
            write_json(self.out_file, self.report)


def or_none(value: float) -> float | None:
    """A number for a JSON file, which knows no nan."""
    return None if math.isnan(value) else float(value)
