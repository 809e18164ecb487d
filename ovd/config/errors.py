"""The error of a config, and the hints it gives."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Everything wrong with a config, in one message."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``', did you mean 'x'?'`` for the most similar known name; empty when none is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f', did you mean {similar[0]!r}?' if similar else ''
