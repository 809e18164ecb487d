"""Reading an experiment's config, and refusing it early when it cannot be what the user meant.

Reading order: loading (``load_config``), collection (configs by name), variables (values that follow),
checks, needs.
"""

from .collection import CONFIG_ROOT, find_config
from .errors import ConfigError
from .loading import load_config
from .needs import STAGES, check_needs

__all__ = [
    'CONFIG_ROOT',
    'STAGES',
    'ConfigError',
    'check_needs',
    'find_config',
    'load_config',
]
