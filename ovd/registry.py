"""Child registries of mmengine's; a config reaches our classes as ``type='ovd.Name'``.

``locations`` are imported on the first look-up, so neither tools nor configs need ``custom_imports``. Keep
``default_scope`` at the host's name (``mmdet`` or ``mmseg``): under a foreign default scope the host's own
nested bare names are no longer found.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='ovd', locations=['ovd.models.registered'])
TASK_UTILS = Registry(
    'task util', parent=MMENGINE_TASK_UTILS, scope='ovd', locations=['ovd.models.registered']
)
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='ovd', locations=['ovd.datasets.registered'])
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='ovd', locations=['ovd.datasets.registered']
)
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope='ovd', locations=['ovd.datasets.registered']
)
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='ovd', locations=['ovd.datasets.registered']
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='ovd', locations=['ovd.evaluation.registered'])
HOOKS = Registry(
    'hook', parent=MMENGINE_HOOKS, scope='ovd', locations=['ovd.training.hooks', 'ovd.training.progress']
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='ovd', locations=['ovd.training.optim']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='ovd',
    locations=['ovd.training.optim'],
)
