"""Open-vocabulary dense prediction on the OpenMMLab stack."""

from .compat import install
from .version import __version__

__all__ = ['__version__']

install()
