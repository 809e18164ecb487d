"""The check of an argument that takes one of a few values."""

from collections.abc import Iterable


def check_option(name: str, value: object, known: Iterable[object]) -> None:
    """Raise ValueError, naming the argument and its known values, where ``value`` is none of them."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, known))}, got {value!r}')
