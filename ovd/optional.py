"""Packages that some features need and the rest does without."""

import importlib
from typing import Any


def import_optional(name: str, extra: str, purpose: str) -> Any:
    """Import a package that is not among ovd's dependencies.

    Args:
        name: of the module.
        extra: the extra of ovd that installs it.
        purpose: what needs it, for the message.
    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition('.')[0]:
            raise
        raise ImportError(f"{purpose} needs the package {error.name}: pip install 'ovd[{extra}]'") from None
