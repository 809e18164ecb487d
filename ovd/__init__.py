"""Open-vocabulary dense prediction on the OpenMMLab stack."""

from .hosts import import_hooks as compat
from .version import __version__

__all__ = ['__version__']

compat.install()
