"""Keep large packages out that a host imports for functions which are rarely called.

While a module of ``DEFERRED`` executes, the packages named beside it are represented by stand-ins: modules
whose attributes are ``Deferred`` objects. The stand-ins leave ``sys.modules`` when the module is done, so
everybody else imports the real package. What the module bound to its own names imports the real package on
first use: a call, an attribute, an ``isinstance``, a base class.

A package that is not installed is not represented: the host's own ``except ImportError`` applies.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DEFERRED = {
    'mmdet.datasets.transforms.generate_line': ('imgaug', 'scipy.interpolate'),
    'mmdet.datasets.transforms.text_transformers': ('transformers',),
    'mmdet.utils.mot_error_visualize': ('matplotlib', 'seaborn'),
    'open_clip.coca_model': ('transformers',),
    'open_clip.hf_model': ('transformers',),
    'torchvision.ops.roi_align': ('torch._dynamo',),
}
"""Importing module -> packages that it can do without until they are used."""

_active: set[str] = set()


@contextmanager
def deferred(packages: Sequence[str]) -> Iterator[None]:
    """Represent packages by stand-ins in what is imported meanwhile, if they are installed and not loaded."""
    chosen = {name for name in packages if name not in sys.modules and _is_installed(name)} - _active
    _active.update(chosen)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    try:
        yield
    finally:
        for name in chosen:
            _stop(name)


class Deferred:
    """An object of a package that is not imported yet; it becomes the real one where it is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(_import_real(self._module), self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') and name.endswith('__'):  # asked by inspection, not by use
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]

    def __or__(self, other: Any) -> Any:
        return self._real() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._real()

    def __repr__(self) -> str:
        return f'<deferred {self._module}.{self._name}>'


class _StandIn(ModuleType):
    """A module that is not imported yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') and name.endswith('__'):
            raise AttributeError(name)
        if _is_active(self.__name__):
            return Deferred(self.__name__, name)
        return getattr(_import_real(self.__name__), name)


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder(MetaPathFinder):
    """Finds the packages that are deferred at the moment, and all that lies in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_active(fullname):
            return None
        return ModuleSpec(fullname, _StandInLoader(), is_package=True)


def _is_active(name: str) -> bool:
    return any(name == package or name.startswith(f'{package}.') for package in _active)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _stop(package: str) -> None:
    """Let a package be imported as usual from now on."""
    _active.discard(package)
    for name in [name for name in sys.modules if name == package or name.startswith(f'{package}.')]:
        if isinstance(sys.modules[name], _StandIn):
            del sys.modules[name]
            parent, _, child = name.rpartition('.')
            if isinstance(vars(sys.modules.get(parent, object)).get(child), _StandIn):
                delattr(sys.modules[parent], child)


def _import_real(name: str) -> ModuleType:
    """Import a module although its package may be deferred at the moment."""
    for package in [package for package in _active if name == package or name.startswith(f'{package}.')]:
        _stop(package)
    return importlib.import_module(name)


_FINDER = _Finder()
