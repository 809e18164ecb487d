"""What a class of a config refuses, said in the config's terms."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from ..config.errors import did_you_mean

_UNEXPECTED = re.compile(r"__init__\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r'__init__\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.*)')


def wrong_argument(error: BaseException) -> str | None:
    """One line about an argument of a config that its class does not take, or lacks.

    Args:
        error: what was raised while a registry built an object.
    Returns:
        None for errors that do not come from the arguments that a registry handed over.
    """
    unexpected, missing = _UNEXPECTED.search(str(error)), _MISSING.search(str(error))
    if not isinstance(error, TypeError) or not (unexpected or missing):
        return None
    for kind, arguments in reversed(list(_builds(error))):  # the innermost first
        if unexpected and unexpected[1] in arguments:
            hint = did_you_mean(unexpected[1], _parameters(kind) - set(arguments))
            return f'in the config of {kind.__name__}: no argument {unexpected[1]!r}{hint}'
        if missing and str(error).startswith(f'{kind.__qualname__}.'):
            return f'in the config of {kind.__name__}: missing {missing[1]}'
    return None


def _builds(error: BaseException) -> Iterator[tuple[type, dict[str, Any]]]:
    """(class, arguments) of the objects that registries were building, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_name == 'build_from_cfg' and inspect.isclass(names.get('obj_cls')):
            yield names['obj_cls'], dict(names.get('args') or {})
        trace = trace.tb_next


def _parameters(kind: type) -> set[str]:
    """Named arguments of a class, those that it hands on to its bases too."""
    names: set[str] = set()
    for each in kind.__mro__[:-1]:
        if '__init__' in vars(each):
            kinds = inspect.signature(vars(each)['__init__']).parameters.values()
            names |= {each.name for each in kinds if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    return names - {'self'}
