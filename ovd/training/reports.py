"""Run the test loop and report metrics with their protocol."""

import math
from collections.abc import Mapping
from typing import Any

from mmengine.model import is_model_wrapper

from .runner import ToolRunner


def evaluate(runner: ToolRunner, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Run the test loop; return metrics, per-class results and protocol as JSON values.

    Args:
        protocol: entries such as config and checkpoint, in addition to those of model and metrics.
    """
    from ..evaluation.reporting_metric import ReportingMetric
    from ..models.base import OpenVocabularyModel

    metrics = runner.test_loop.evaluator.metrics
    reporting = [metric for metric in metrics if isinstance(metric, ReportingMetric)]
    for metric in reporting:
        metric.protocol.update(protocol)
    results = runner.test()
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    described = model.describe() if isinstance(model, OpenVocabularyModel) else {}
    report: dict[str, Any] = {'metrics': results, 'protocol': {**protocol, **described}}
    for metric in reporting:
        own = metric.report
        tables = {key: value for key, value in own.items() if key not in ('metrics', 'protocol')}
        for target, entries in ((report['protocol'], own.get('protocol', {})), (report, tables)):
            for key, value in entries.items():
                # If metrics have different values of an entry, later ones get the metric's name as prefix.
                differs = key in target and target[key] != value
                target[f'{metric.prefix or type(metric).__name__}/{key}' if differs else key] = value
    return to_json(report)


def to_json(value: Any) -> Any:
    """Convert to JSON values: numpy and torch values to numbers, nan and infinity to null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, 'tolist'):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
