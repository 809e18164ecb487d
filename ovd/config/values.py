"""Values of a config with which nothing is learned or answered: out of range, not finite, or text."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """The numbers that a key takes.

    Attributes:
        low, high: the range, ends included.
        above: whether ``low`` itself is out of range.
        whole: whether only integers are in range.
    """

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    whole: bool = False

    def __str__(self) -> str:
        kind = 'whole number' if self.whole else 'finite number' if math.isinf(self.high) else 'number'
        if math.isinf(self.high):
            return f'a {kind} {"above" if self.above else "of at least"} {self.low:g}'
        return f'a {kind} from {self.low:g} to {self.high:g}'

    def contain(self, value: Any) -> bool:
        """Whether a value is such a number; text, booleans and NaN are not."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return (
            math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)
        )


SHARE = Limits(high=1.0)
COUNT = Limits(low=1, whole=True)
NOT_NEGATIVE = Limits()
POSITIVE = Limits(above=True)

# Thresholds of scores and overlaps anywhere in a model; a None switches the rule off.
_THRESHOLDS = frozenset(['score_thr', 'score_threshold', 'min_score', 'iou_threshold'])
# mmdet's ``pos_weight = -1`` means no weight.
_SWITCHES = frozenset(['pos_weight'])


def value_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of a config, one message each, naming key and value."""
    problems = []
    for where, key, value in _leaves('model', config.get('model')):
        limits = _limits_in_model(key)
        if limits is not None and value is not None and not limits.contain(value):
            problems.append(describe(where, value, limits))
    wrapper = config.get('optim_wrapper')
    for name, section, key, limits in (
        ('optim_wrapper.optimizer', _part(wrapper, 'optimizer'), 'lr', POSITIVE),
        ('optim_wrapper.optimizer', _part(wrapper, 'optimizer'), 'weight_decay', NOT_NEGATIVE),
        ('optim_wrapper.clip_grad', _part(wrapper, 'clip_grad'), 'max_norm', POSITIVE),
    ):
        value = section.get(key)
        if value is not None and not limits.contain(value):
            problems.append(describe(f'{name}.{key}', value, limits))
    return problems


def describe(where: str, value: Any, limits: Limits) -> str:
    """One message about a value that is out of range."""
    return f'{where} is {value!r}, expected {limits}'


def _limits_in_model(key: str) -> Limits | None:
    if key in _THRESHOLDS:
        return SHARE
    is_weight = key == 'loss_weight' or (key.endswith('_weight') and key not in _SWITCHES)
    return NOT_NEGATIVE if is_weight else None


def _leaves(where: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(dotted key, its last part, value) of the numbers and texts in nested dicts and lists."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        if isinstance(item, Mapping | list | tuple):
            yield from _leaves(f'{where}.{key}', item)
        else:
            yield f'{where}.{key}', str(key), item


def _part(section: Any, name: str) -> Mapping[str, Any]:
    part = section.get(name) if isinstance(section, Mapping) else None
    return part if isinstance(part, Mapping) else {}
