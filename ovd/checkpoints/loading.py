"""Checkpoints: reading without executing anything, comparing with a model, writing atomically.

We write safetensors, and training checkpoints as mmengine does; we read those and foreign PyTorch files,
weights-only.

Reading order: load_tensors, load_into, load_complete, save_tensors (weights), save_checkpoint (a whole
training state), patch_mmengine (all of mmengine's own loading and saving comes here).
"""

import copy
import fnmatch
import io
import json
import logging
import os
import re
import struct
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..files import atomic_path
from .reading import PathLike, UnsafeCheckpointError, read_checkpoint, require_file

__all__ = [
    'LoadReport',
    'UnsafeCheckpointError',
    'compare',
    'load_complete',
    'load_into',
    'load_metadata',
    'load_tensors',
    'patch_mmengine',
    'read_checkpoint',
    'save_checkpoint',
    'save_tensors',
]

_WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'module')
_SHOWN_KEYS = 6


def load_tensors(path: PathLike, device: str | torch.device = 'cpu') -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint.

    Args:
        path: a safetensors file, or a PyTorch file read weights-only; a ``state_dict`` or ``model`` entry
            that holds the tensors is unwrapped.
        device: where the tensors go.
    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the file holds more than tensors and plain values.
        ValueError: not a checkpoint, truncated, or without tensors; names the file and what was found.
    """
    found = read_checkpoint(path, map_location=device)
    trail = ''
    while isinstance(found, dict):
        inner = next((key for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None or any(isinstance(value, Tensor) for value in found.values()):
            break
        found, trail = found[inner], f'{trail}[{inner!r}]'
    where = f'{path}{trail}'
    if not isinstance(found, dict):
        raise ValueError(f'{where}: expected named tensors, found {type(found).__name__}')
    tensors = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f'{where}: expected named tensors, found {type(value).__name__} under {key!r}')
        tensors[key] = value.detach()
    if not tensors:
        raise ValueError(f'{where}: holds no tensors')
    return tensors


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint's tensors fit a model; shapes are (in the checkpoint, in the model)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    num_matched: int

    @property
    def is_complete(self) -> bool:
        """Every tensor of the model was found, and nothing else."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f'{self.num_matched} tensors match']
        for title, keys in (('missing', self.missing), ('unexpected', self.unexpected)):
            if keys:
                parts.append(f'{len(keys)} {title}: {_shorten(keys)}')
        if self.mismatched:
            shapes = [f'{key} {found} instead of {wanted}' for key, found, wanted in self.mismatched]
            parts.append(f'{len(shapes)} of another shape: {_shorten(shapes)}')
        return '; '.join(parts)

    def listing(self) -> str:
        """Every key that does not fit, a line each."""
        lines = [f'missing: {key}' for key in self.missing]
        lines += [f'unexpected: {key}' for key in self.unexpected]
        lines += [f'{found} instead of {wanted}: {key}' for key, found, wanted in self.mismatched]
        return '\n'.join(lines)


def _shorten(items: Iterable[str]) -> str:
    listed = list(items)
    rest = len(listed) - _SHOWN_KEYS
    return ', '.join(listed[:_SHOWN_KEYS]) + (f' and {rest} more' if rest > 0 else '')


def compare(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Report how ``tensors`` fit ``module``; the patterns (``fnmatch``) name keys not worth reporting.

    What loading itself renames or resizes is done before: the report says what ``load_state_dict`` does.
    """
    return _trial(module, tensors, allow_missing, allow_unexpected)[0]


class _NoCopies(TorchFunctionMode):
    """Inside, ``Tensor.copy_`` does nothing, and so loading changes no weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.copy_ else func(*args, **(kwargs or {}))


def _trial(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> tuple[LoadReport, dict[str, Tensor]]:
    """What loading would do, and the tensors without those of another shape.

    Goes through the modules as ``load_state_dict`` does, with their hooks and their own
    ``_load_from_state_dict``, by which hosts rename what older or other models call differently.
    """
    metadata = getattr(tensors, '_metadata', None) or {}  # versions of the modules that wrote the file
    expected = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []

    def load(part: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
        part._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, [], unexpected, [])
        own = (key for key in state if key.startswith(prefix) and '.' not in key[len(prefix) :])
        found.update((key, state[key]) for key in own if key in expected)
        for name, child in part._modules.items():
            inner = f'{prefix}{name}.'
            below = {key: tensor for key, tensor in state.items() if key.startswith(inner)}
            if child is None:
                unexpected.extend(below)
            else:
                load(child, below, inner)

    with _NoCopies():
        load(module, dict(tensors), '')
    given = {id(tensor) for tensor in tensors.values()}
    mismatched = {
        key: tensor
        for key, tensor in found.items()
        if tensor.shape != expected[key].shape and (tensor.shape, expected[key].dim()) != ((1,), 0)
    }
    # Batch norms invent a counter that the file lacks.
    matched = [key for key in found.keys() - mismatched if key in tensors or id(found[key]) in given]
    allow_missing = [*allow_missing, '*num_batches_tracked']
    report = LoadReport(
        missing=tuple(_not_allowed((key for key in expected if key not in found), allow_missing)),
        unexpected=tuple(_not_allowed(unexpected, allow_unexpected)),
        mismatched=tuple(
            (key, tuple(mismatched[key].shape), tuple(expected[key].shape))
            for key in expected
            if key in mismatched
        ),
        num_matched=len(matched),
    )
    refused = {id(tensor) for tensor in mismatched.values()}
    fitting = OrderedDict((key, tensor) for key, tensor in tensors.items() if id(tensor) not in refused)
    fitting._metadata = metadata  # type: ignore[attr-defined]
    return report, fitting


def _not_allowed(keys: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns)
    return [key for key in keys if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)]


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    strict: bool = True,
    source: PathLike = 'the checkpoint',
) -> LoadReport:
    """Copy ``tensors`` into ``module`` and say what did not fit.

    Args:
        allow_missing, allow_unexpected: key patterns (``fnmatch``) that may be absent, or left over.
        strict: refuse, before anything is copied, unless everything fits; otherwise copy what fits.
        source: named in messages.
    Raises:
        ValueError: strict and something does not fit, or nothing at all fits; the model is unchanged.
    """
    tensors = _unwrapped(tensors)
    report, fitting = _trial(module, tensors, allow_missing, allow_unexpected)
    if report.num_matched == 0 and tensors:
        raise ValueError(
            f'{source} belongs to another model: none of its {len(tensors)} tensors fits '
            f'{type(module).__name__} ({report})'
        )
    if strict and not report.is_complete:
        raise ValueError(f'{source} does not fit {type(module).__name__}: {report}')
    module.load_state_dict(fitting, strict=False)
    return report


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The names without the prefix that saving a data-parallel wrapper adds."""
    if all(key.startswith('module.') for key in tensors):
        return {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
    return tensors


def load_complete(
    module: nn.Module, tensors: Mapping[str, Tensor], source: PathLike = 'the checkpoint'
) -> LoadReport:
    """Load the weights of a model that is to answer with them.

    All of the model's tensors must be there; what the checkpoint has beyond them is left out with a warning.

    Raises:
        ValueError: a tensor is missing or has another shape; the model is unchanged.
    """
    report = compare(module, _unwrapped(tensors))
    if report.missing or report.mismatched:
        raise ValueError(f'{source} is not a checkpoint of this {type(module).__name__}: {report}')
    load_into(module, tensors, strict=False, source=source)
    if report.unexpected:
        _logger().warning(f'Loaded {source} in part: {report}')
    return report


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` as one safetensors file, atomically; equal content gives equal bytes."""
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        copies[name] = copy
    with atomic_path(path) as temporary:
        save_file(copies, temporary, metadata=dict(metadata) if metadata else None)
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Put the metadata of a safetensors file in order of its keys; the library's order is random."""
    with path.open('r+b') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(length))
        if '__metadata__' not in header:
            return
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def load_metadata(path: PathLike) -> dict[str, str]:
    """The metadata of a safetensors file; empty when it has none."""
    require_file(path)
    try:
        with safetensors.safe_open(os.fspath(path), framework='pt') as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path}: damaged or not a safetensors file ({error})') from None


def save_checkpoint(
    checkpoint: dict[str, Any],
    filename: str,
    file_client_args: Any = None,
    backend_args: dict[str, Any] | None = None,
) -> None:
    """Write a training state as a PyTorch file, atomically: a kill leaves the previous file whole.

    What our reader would refuse later is replaced by plain values (a ``Path`` by its text, a dict subclass by
    a dict), or left out with a warning that names it. The signature is mmengine's; remote backends receive
    the bytes through mmengine's file interface.
    """
    dropped: list[str] = []
    state = _readable(checkpoint, '', dropped)
    if dropped:
        _logger().warning(f'{filename}: left out what a checkpoint cannot hold safely: {_shorten(dropped)}')
    if file_client_args is None and backend_args is None and '://' not in filename:
        with atomic_path(filename) as temporary:
            _torch_save(state, temporary, filename)
        return
    from mmengine.fileio import FileClient, get_file_backend

    if file_client_args is not None:
        backend: Any = FileClient.infer_client(file_client_args, filename)
    else:
        backend = get_file_backend(filename, backend_args=backend_args)
    with io.BytesIO() as buffer:
        torch.save(state, buffer)
        backend.put(buffer.getvalue(), filename)


def _torch_save(state: Any, path: Path, name: str) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:
        # torch's writer reports a full disk so.
        raise OSError(f'{name} could not be written: {" ".join(str(error).split())[:200]}') from error


def _readable(value: Any, where: str, dropped: list[str]) -> Any:
    """``value`` with everything replaced, or dropped, that :func:`read_checkpoint` would refuse."""
    from mmengine.logging import HistoryBuffer

    if type(value) in _PLAIN or isinstance(value, Tensor) or type(value) is HistoryBuffer:
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in 'biufUS':
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float | str):
        return next(base for base in (int, float, str) if isinstance(value, base))(value)
    if isinstance(value, Mapping):
        plain = dict(value) if type(value) is not OrderedDict else copy.copy(value)
        for key, item in value.items():
            plain[key] = _readable(item, f'{where}.{key}' if where else str(key), dropped)
            if plain[key] is _DROPPED:
                del plain[key]
        return plain
    if isinstance(value, list | tuple | deque | set | frozenset):
        items = [_readable(item, f'{where}[{index}]', dropped) for index, item in enumerate(value)]
        items = [None if item is _DROPPED else item for item in items]
        kind = tuple if isinstance(value, tuple) else set if isinstance(value, set | frozenset) else list
        return kind(items)
    dropped.append(f'{where} ({type(value).__name__})')
    return _DROPPED


_DROPPED = object()
_PLAIN = (type(None), bool, int, float, str, bytes, slice, torch.dtype, torch.device, torch.Size)


def _logger() -> logging.Logger:
    from mmengine.logging import MMLogger

    return MMLogger.get_current_instance()


def _load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Download once into torch's cache, then read like any other file."""
    folder = Path(model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    target = folder / os.path.basename(urlparse(url).path)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), progress=progress)
    return read_checkpoint(target, map_location)


def _state_dict(content: Any) -> Any:
    """The named tensors of a checkpoint's content, as mmengine finds them."""
    return content.get('state_dict', content)


def patch_mmengine(module: ModuleType) -> None:
    """Send all loading and saving of ``mmengine.runner.checkpoint`` through this file; safe to call twice.

    mmengine reads weights-only first, but falls back to full unpickling. Everything that loads (``init_cfg``,
    ``load_from``, resume, the inferencers) ends in the functions replaced here. It also goes on with random
    weights where nothing of a file fits; here that is an error, and a line says what of it did not fit.
    """

    def safe_torch_load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(file, map_location)

    def load_state_dict(
        model: Any,
        state_dict: Mapping[str, Tensor],
        strict: bool = False,
        logger: Any = None,
        source: PathLike = 'the checkpoint',
    ) -> None:
        from mmengine.model import is_model_wrapper

        target = model.module if is_model_wrapper(model) else model
        report = load_into(target, state_dict, strict=strict, source=source)
        if not report.is_complete:
            _logger().warning(f'Loaded {source} into {type(target).__name__} in part: {report}')

    def load_checkpoint(
        model: nn.Module,
        filename: str,
        map_location: Any = None,
        strict: bool = False,
        logger: Any = None,
        revise_keys: Iterable[tuple[str, str]] = ((r'^module\.', ''),),
    ) -> Any:
        content = module._load_checkpoint(filename, map_location, logger)
        tensors = _state_dict(content)
        renamed = OrderedDict(tensors)
        for pattern, replacement in revise_keys:
            renamed = OrderedDict(
                (re.sub(pattern, replacement, key), value) for key, value in renamed.items()
            )
        renamed._metadata = getattr(tensors, '_metadata', None)  # type: ignore[attr-defined]
        load_state_dict(model, renamed, strict, logger, filename)
        return content

    def load_with_prefix(prefix: str, filename: str, map_location: Any = None) -> dict[str, Tensor]:
        start = f'{prefix.removesuffix(".")}.'
        tensors = _state_dict(module._load_checkpoint(filename, map_location))
        found = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        if not found:
            raise ValueError(f'{filename}: none of its {len(tensors)} tensors begins with {start!r}')
        return found

    def quiet_print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        from mmengine.logging import print_log

        if logger is None:
            logger, level = 'current', level if level >= logging.WARNING else logging.DEBUG
        print_log(msg, logger=logger, level=level)

    replacements: dict[str, Callable[..., Any]] = {
        '_safe_torch_load': safe_torch_load,
        '_load_checkpoint_with_prefix': load_with_prefix,
        'load_checkpoint': load_checkpoint,
        'load_state_dict': load_state_dict,
        'load_url': _load_url,
        'save_checkpoint': save_checkpoint,
        'print_log': quiet_print_log,
    }
    original_save = getattr(module, 'save_checkpoint', None)
    for name, replacement in replacements.items():
        setattr(module, name, replacement)
    for name, other in list(sys.modules.items()):
        if name.startswith('mmengine.') and getattr(other, 'save_checkpoint', None) is original_save:
            other.save_checkpoint = save_checkpoint  # type: ignore[attr-defined]
