"""Sections of a config as frozen dataclasses: unknown and missing keys are refused by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ConfigError, did_you_mean

T = TypeVar('T')


def parse_section(where: str, section: Any, kind: type[T]) -> T:
    """Make a dataclass from a section of a config.

    Fields whose metadata has ``kind``, see ``nested``, are parsed by that dataclass.

    Args:
        where: the section's name, for messages.
        section: a mapping of the fields' names to their values.
        kind: the dataclass.
    Raises:
        ConfigError: no mapping; unknown or missing keys, all of them; or what the dataclass refuses.
    """
    problems: list[str] = []
    parsed = _parse(where, section, kind, problems)
    if problems:
        raise ConfigError('; '.join(problems))
    return parsed


def nested(kind: type, **options: Any) -> Any:
    """A dataclass field that is a section itself."""
    return dataclasses.field(metadata={'kind': kind}, **options)


def _parse(where: str, section: Any, kind: Any, problems: list[str]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(section, Mapping):
        required = ', '.join(f'{name}=...' for name, field in fields.items() if _is_required(field))
        problems.append(f'{where} is {section!r}, expected dict({required})')
        return None
    before = len(problems)
    for key in section:
        if key not in fields:
            hint = did_you_mean(str(key), fields) or f', known: {", ".join(fields)}'
            problems.append(f'{where} has an unknown key {key!r}{hint}')
    values: dict[str, Any] = {}
    for name, field in fields.items():
        value = section.get(name)
        if value is None and _is_required(field):
            problems.append(f'{where} lacks {name!r}')
        elif name in section:
            inner = field.metadata.get('kind')
            is_nested = inner is not None and value is not None
            values[name] = _parse(f'{where}.{name}', value, inner, problems) if is_nested else value
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        problems.append(f'{where}.{error}')
        return None


def _is_required(field: 'dataclasses.Field[Any]') -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
