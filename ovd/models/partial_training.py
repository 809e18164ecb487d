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
    """Put every module in which nothing is trained into eval mode: no dropout, no running statistics."""
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.training = False
