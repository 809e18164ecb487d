"""Training part of a model: freeze all other parameters and keep their modules in eval mode."""

import fnmatch
from collections.abc import Sequence

from torch import nn


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters except those whose names match a pattern (``fnmatch``).

    Raises:
        ValueError: a pattern matches no parameter or buffer.
    """
    names = [name for part in (model.named_parameters(), model.named_buffers()) for name, _ in part]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f'no parameter matches {pattern!r}; names are {", ".join(names[:4])}, ...')
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def evaluate_frozen(model: nn.Module) -> None:
    """Put modules whose parameters are all frozen into eval mode: no dropout, no statistics updates.

    Modules without parameters, such as dropout, follow the module that contains them.
    """
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()
        else:
            evaluate_frozen(child)
