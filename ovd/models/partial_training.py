"""Training a part of a model: what is named learns, the rest is frozen and stays as in evaluation."""

import fnmatch
from collections.abc import Sequence

from torch import nn


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters but those whose names match one of the patterns (``fnmatch``).

    Raises:
        ValueError: a pattern that neither a parameter nor a buffer matches.
    """
    names = [name for part in (model.named_parameters(), model.named_buffers()) for name, _ in part]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f'no parameter is named {pattern!r}; there are {", ".join(names[:4])} ...')
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def evaluate_frozen(model: nn.Module) -> None:
    """Put what is frozen into eval mode: no dropout, no running statistics.

    Those are the modules with parameters of which none is trained, and all inside them. A module without
    parameters, such as dropout, stays as what it is part of.
    """
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()
        else:
            evaluate_frozen(child)
