"""What no config may say: sections that nothing reads, lengths and values that cannot be trained."""

from collections.abc import Mapping
from typing import Any

from .errors import ConfigError
from .values import value_problems

_REFUSED = {
    'runner_type': 'the tools bring their own runner',
    'compile': 'compiled training is not supported',
}
_LENGTHS = ('max_iters', 'max_epochs')


def check_override(key: str, value: Any) -> None:
    """Refuse a length that is no positive whole number before anything is computed from it."""
    if key.rpartition('.')[2] in _LENGTHS and not _is_length(value):
        raise ConfigError(f'option {key}={value!r}: expected a whole number of at least 1')


def check_config(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config that was read."""
    problems = [f'section {name!r}: {why}' for name, why in _REFUSED.items() if config.get(name)]
    loop = config.get('train_cfg') or {}
    for where, section in (('', config), ('train_cfg.', loop)):
        for name in _LENGTHS:
            value = section.get(name)
            if value is not None and not _is_length(value):
                problems.append(f'{where}{name} is {value!r}, expected a whole number of at least 1')
    return [*(problems or _schedule_problems(config, loop)), *value_problems(config)]


def _schedule_problems(config: Mapping[str, Any], loop: Mapping[str, Any]) -> list[str]:
    """Schedulers that end before they begin, as where a training is shorter than its warm-up."""
    schedulers = config.get('param_scheduler') or []
    problems = []
    for index, scheduler in enumerate([schedulers] if isinstance(schedulers, dict) else schedulers):
        begin, end = scheduler.get('begin', 0), scheduler.get('end')
        if not isinstance(begin, int) or not isinstance(end, int) or end > begin:
            continue
        name = 'max_epochs' if scheduler.get('by_epoch', True) else 'max_iters'
        if loop.get(name) is None:
            length = ''
        elif loop[name] == end:
            length = f'{name}={end} is not longer than the {begin} steps before it (warm-up): '
        else:
            length = f'{name}={loop[name]}: '
        problems.append(
            f'{length}param_scheduler[{index}] has begin={begin} and end={end}; use {name} > {begin}, or '
            'param_scheduler=[]'
        )
    return problems


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
