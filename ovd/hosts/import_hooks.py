"""Import hooks for mmengine, mmcv, mmdet and mmseg (the hosts).

``import ovd`` calls :func:`install`, which inserts one finder in front of Python's own and imports nothing.
Afterwards, no matter which code imports a host:

- ``mmcv._ext``, mmcv's compiled operators, is provided by :mod:`ovd.hosts.ops` if it is not installed;
- ``mmengine.runner.checkpoint`` is patched by :mod:`ovd.hosts.mmengine_checkpoints` after its import;
- ``mmdet.datasets`` and ``mmseg.datasets`` do not print debug messages during their import;
- large packages that a host imports for rarely called functions wait until they are used, see
  :mod:`ovd.hosts.deferred_imports`;
- known warnings of the hosts about their own code are ignored.
"""

import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .deferred_imports import DEFERRED, deferred

EXTENSION = 'mmcv._ext'
HOST_WARNINGS = (
    '``MultiScaleDeformableAttention`` has been moved',  # raised by a module that still exports it
    'In MMCV v1.4.4, we modified the default value of args',  # raised by every Hsigmoid, which DyHead uses
    'DeprecationWarning: `num_anchors` is deprecated',  # raised by mmdet's own ATSS head
)


def install() -> None:
    """Install the import hooks; calling it again changes nothing."""
    if _FINDER in sys.meta_path:
        return
    sys.meta_path.insert(0, _FINDER)
    for message in HOST_WARNINGS:
        warnings.filterwarnings('ignore', message)
    # mmdet has two invalid escape sequences; Python warns when it compiles the files on first import.
    warnings.filterwarnings('ignore', category=SyntaxWarning, module=r'.*[/\\]mmdet[/\\]')
    for name, after in _AFTER_IMPORT.items():
        if name in sys.modules:
            after(sys.modules[name])
    if 'mmcv.utils.ext_loader' in sys.modules and 'mmcv.ops' not in sys.modules and uses_stand_in():
        warnings.warn(
            'mmdet or mmseg was imported before ovd and found no operators: import ovd first', stacklevel=3
        )


def uses_stand_in() -> bool:
    """Whether mmcv's operators come from :mod:`ovd.hosts.ops`, because mmcv has no compiled ones."""
    spec = importlib.util.find_spec(EXTENSION)
    return spec is not None and isinstance(spec.loader, _StandInLoader)


class _HostFinder(MetaPathFinder):
    """Finds the modules named in this file through the other finders and hooks their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION and fullname not in _AROUND_IMPORT and fullname not in _AFTER_IMPORT:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if fullname == EXTENSION:
            return spec or ModuleSpec(fullname, _StandInLoader(), origin='ovd.hosts.ops')
        if spec is not None and spec.loader is not None:
            _hook(spec.loader, fullname)
        return spec


class _StandInLoader(Loader):
    """Creates ``mmcv._ext`` from our operators; an operator we lack raises when it is called."""

    def exec_module(self, module: ModuleType) -> None:
        ops = importlib.import_module('ovd.hosts.ops')
        module.__dict__.update(ops.OPERATORS, __getattr__=ops.missing_operator)


def _hook(loader: Any, fullname: str) -> None:
    """Wrap ``exec_module`` of this loader, which belongs to one module and is used once."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        with _AROUND_IMPORT.get(fullname, nullcontext)():
            execute(module)
        if fullname in _AFTER_IMPORT:
            _AFTER_IMPORT[fullname](module)

    loader.exec_module = exec_module


@contextmanager
def _without_debug_lines() -> Iterator[None]:
    """Keep mmengine's ``print_log`` from printing messages of level DEBUG.

    The data set packages report an optional dependency at that level without a logger, and mmengine prints
    such messages at any level. Modules imported inside keep the wrapper; afterwards it has no effect.
    """
    host: Any = importlib.import_module('mmengine.logging')
    original, importing = host.print_log, True

    def print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if not (importing and logger is None and level < logging.INFO):
            original(msg, logger, level)

    host.print_log = print_log
    try:
        yield
    finally:
        host.print_log, importing = original, False


def _guard_checkpoints(module: ModuleType) -> None:
    """Prevent every checkpoint loader of mmengine from falling back to unpickling."""
    importlib.import_module('ovd.hosts.mmengine_checkpoints').patch_mmengine(module)


_AROUND_IMPORT: dict[str, Callable[[], AbstractContextManager[None]]] = {
    'mmdet.datasets': _without_debug_lines,
    'mmseg.datasets': _without_debug_lines,
    **{importer: partial(deferred, packages) for importer, packages in DEFERRED.items()},
}
_AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {'mmengine.runner.checkpoint': _guard_checkpoints}
_FINDER = _HostFinder()
