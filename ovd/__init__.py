"""Open-vocabulary dense prediction on the OpenMMLab stack.

``load``, ``Predictor``, ``Vocabulary``, ``TextEmbeddings`` and ``load_config`` are imported when they are
first used: ``import ovd`` itself loads neither torch nor a host.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .hosts import import_hooks
from .version import __version__

if TYPE_CHECKING:
    from .config import load_config
    from .encoders.text_embeddings import TextEmbeddings
    from .inference.predictor import Predictor, load
    from .text.vocabulary import Vocabulary

__all__ = ['Predictor', 'TextEmbeddings', 'Vocabulary', '__version__', 'load', 'load_config']

_MODULES = {
    'Predictor': '.inference.predictor',
    'TextEmbeddings': '.encoders.text_embeddings',
    'Vocabulary': '.text.vocabulary',
    'load': '.inference.predictor',
    'load_config': '.config',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


import_hooks.install()
