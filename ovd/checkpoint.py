"""Checkpoints that cannot execute code: reading, writing, comparing with a model.

We write safetensors, or mmengine's training checkpoints. We read safetensors and PyTorch files, the latter
only through torch's weights-only reader: a file that asks for anything but tensors and plain values is
refused, never unpickled. Training checkpoints also hold log histories and numpy values; their classes are
replaced by inert stand-ins while reading, and rebuilt afterwards from the plain values that were found.

Reading order: load_tensors, load_into, save_tensors (weights), read_checkpoint and save_checkpoint (whole
training states), patch_mmengine (all of mmengine's own loading goes through here).
"""

import fnmatch
import io
import json
import logging
import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlparse

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import atomic_path

PathLike = str | os.PathLike[str]

_WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'module')
_ZIP_MAGIC = b'PK\x03\x04'
_LEGACY_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'
_SHOWN_KEYS = 6


class UnsafeCheckpointError(ValueError):
    """A file that would have to execute code, or build objects, to be read."""


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
    """Report how ``tensors`` fit ``module``; the patterns (``fnmatch``) name keys not worth reporting."""
    expected = module.state_dict()
    allow_missing = [*allow_missing, '*num_batches_tracked']
    allow_unexpected = list(allow_unexpected)

    def is_allowed(key: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)

    shared = [key for key in expected if key in tensors and isinstance(expected[key], Tensor)]
    mismatched = tuple(
        (key, tuple(tensors[key].shape), tuple(expected[key].shape))
        for key in shared
        if tensors[key].shape != expected[key].shape
    )
    return LoadReport(
        missing=tuple(k for k in expected if k not in tensors and not is_allowed(k, allow_missing)),
        unexpected=tuple(k for k in tensors if k not in expected and not is_allowed(k, allow_unexpected)),
        mismatched=mismatched,
        num_matched=len(shared) - len(mismatched),
    )


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
    report = compare(module, tensors, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    if report.num_matched == 0 and tensors:
        raise ValueError(
            f'{source} belongs to another model: none of its {len(tensors)} tensors fits '
            f'{type(module).__name__} ({report})'
        )
    if strict and not report.is_complete:
        raise ValueError(f'{source} does not fit {type(module).__name__}: {report}')
    other_shape = {key for key, _, _ in report.mismatched}
    module.load_state_dict({k: v for k, v in tensors.items() if k not in other_shape}, strict=False)
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
    _require_file(path)
    try:
        with safetensors.safe_open(os.fspath(path), framework='pt') as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path}: damaged or not a safetensors file ({error})') from None


def read_checkpoint(source: PathLike | IO[bytes], map_location: Any = None) -> Any:
    """Read a safetensors or PyTorch file without executing anything in it.

    Besides tensors and plain values only log histories, numeric numpy arrays and numpy scalars are accepted.
    Config text that mmengine would execute on resuming (``meta.config``) is dropped.

    Args:
        source: path, or an open binary file.
        map_location: as for ``torch.load``.
    """
    if isinstance(source, str | os.PathLike):
        _require_file(source)
        with open(source, 'rb') as file:
            return _read(file, str(source), map_location)
    return _read(source, getattr(source, 'name', 'the checkpoint'), map_location)


def _require_file(path: PathLike) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if not os.path.isfile(path):
        raise ValueError(f'checkpoint {path} is not a file')


def _read(file: IO[bytes], name: str, map_location: Any) -> Any:
    head = file.read(512)
    file.seek(0)
    if not head:
        raise ValueError(f'{name}: the file is empty')
    if head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] < 1 << 32:
        return _read_safetensors(file, name, map_location)
    if head.startswith(_ZIP_MAGIC):
        _refuse_torchscript(file, name)
    elif not head.startswith(_LEGACY_MAGIC):
        kind = 'a plain pickle, which could execute code' if head[:1] == b'\x80' else 'of an unknown format'
        raise UnsafeCheckpointError(
            f'{name}: refused, the file is {kind}; expected safetensors or a PyTorch checkpoint'
        )
    try:
        with _only_stand_ins():
            content = torch.load(file, map_location=map_location, weights_only=True)
        return _drop_executable_text(_rebuild(content))
    except UnpicklingError as error:
        raise UnsafeCheckpointError(_refusal(name, error)) from None
    except (RuntimeError, EOFError, LookupError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f'{name}: damaged or truncated checkpoint ({reason})') from None


def _read_safetensors(file: IO[bytes], name: str, map_location: Any) -> dict[str, Tensor]:
    try:
        if callable(map_location) or isinstance(map_location, dict):
            map_location = None
        device = str(map_location or 'cpu')
        if isinstance(file, io.BufferedReader):
            return load_file(file.name, device=device)
        return {key: tensor.to(device) for key, tensor in load_safetensors_bytes(file.read()).items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f'{name}: damaged or truncated safetensors file ({error})') from None


def _refuse_torchscript(file: IO[bytes], name: str) -> None:
    """torch would hand such an archive to its program loader, whatever ``weights_only`` says."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.namelist()
    except zipfile.BadZipFile:
        raise ValueError(f'{name}: damaged or truncated checkpoint (not a complete zip archive)') from None
    finally:
        file.seek(0)
    if any(entry.endswith('/constants.pkl') or entry == 'constants.pkl' for entry in entries):
        raise UnsafeCheckpointError(
            f'{name}: refused, the file is a TorchScript program, not a set of weights; save its '
            'state_dict() as safetensors and use that file'
        )


def _refusal(name: str, error: Exception) -> str:
    text = ' '.join(str(error).split())
    found = re.search(r'(?:GLOBAL|function|but got|Unsupported class) (\S+)', text)
    wanted = f'it asks for {found[1].rstrip(".,")}' if found else text[:200]
    return (
        f'{name}: refused, the file holds more than weights: {wanted}; nothing in it was executed. '
        'Convert it to safetensors where it was made'
    )


class _StandIn:
    """Takes the place of a class while a file is read: keeps what the file says, runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _History(_StandIn):
    """mmengine's ``HistoryBuffer``: two numeric arrays."""

    def rebuild(self) -> Any:
        from mmengine.logging import HistoryBuffer

        state = self.state if isinstance(self.state, dict) else {}
        history = HistoryBuffer(max_length=int(state.get('max_length', 1_000_000)))
        history._log_history = np.asarray(_rebuild(state.get('_log_history', [])), dtype=np.float64)
        history._count_history = np.asarray(_rebuild(state.get('_count_history', [])))
        return history


class _Method(_StandIn):
    """``getattr``: a history names its statistics by it; they are known, so the answer is not needed."""

    def rebuild(self) -> Any:
        return None


class _Dtype(_StandIn):
    """``numpy.dtype``: numbers and text only."""

    def rebuild(self) -> np.dtype[Any]:
        code = self.args[0] if self.args else ''
        if not isinstance(code, str) or not re.fullmatch(r'[biufUS]\d{1,4}|\?', code):
            raise UnpicklingError(f'Unsupported class numpy.dtype({code!r})')
        is_big_endian = isinstance(self.state, tuple) and self.state[1:2] == ('>',)
        return np.dtype(code).newbyteorder('>' if is_big_endian else '=')


class _Scalar(_StandIn):
    """``numpy.core.multiarray.scalar(dtype, bytes)``."""

    def rebuild(self) -> Any:
        dtype, raw = self.args
        return np.frombuffer(raw, dtype=_rebuild(dtype), count=1)[0].item()


class _Array(_StandIn):
    """``numpy.core.multiarray._reconstruct`` followed by (version, shape, dtype, is_fortran, bytes)."""

    def rebuild(self) -> Any:
        if self.state is None:
            return None
        _, shape, dtype, is_fortran, raw = self.state
        values = np.frombuffer(raw, dtype=_rebuild(dtype))
        return values.reshape(shape, order='F' if is_fortran else 'C').copy(order='K')


def _stand_in(full_name: str, kind: type[_StandIn]) -> type[_StandIn]:
    module, _, name = full_name.rpartition('.')
    return type(name, (kind,), {'__module__': module, '__qualname__': name})


_STAND_INS: list[Any] = [
    _stand_in('mmengine.logging.history_buffer.HistoryBuffer', _History),
    _stand_in('builtins.getattr', _Method),
    _stand_in('numpy.dtype', _Dtype),
    _stand_in('numpy.ndarray', _Array),
    *(
        _stand_in(f'numpy.{core}.multiarray.{name}', kind)
        for core in ('core', '_core')
        for name, kind in (('_reconstruct', _Array), ('scalar', _Scalar))
    ),
    slice,
]


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Exactly our allow-list, whatever other code has allowed in this process.

    ``torch.serialization.safe_globals`` would do, but torch 2.4 lacks it.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _rebuild(value: Any, seen: set[int] | None = None) -> Any:
    """Replace stand-ins by what they stand for, inside dicts, lists and tuples; in place where possible."""
    seen = set() if seen is None else seen
    if isinstance(value, _StandIn):
        return value.rebuild()  # type: ignore[attr-defined]
    if isinstance(value, tuple):
        items = [_rebuild(item, seen) for item in value]
        return value if all(a is b for a, b in zip(items, value)) else tuple(items)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _rebuild(item, seen)
    return value


def _drop_executable_text(content: Any) -> Any:
    """Drop what mmengine would execute: ``meta.config`` on resuming, ``runtime_info.cfg`` on inferring."""
    if isinstance(content, dict):
        if isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)
        hub = content.get('message_hub')
        if isinstance(hub, dict) and isinstance(hub.get('runtime_info'), dict):
            hub['runtime_info'].pop('cfg', None)
            if isinstance(hub.get('resumed_keys'), dict):
                hub['resumed_keys'].pop('cfg', None)
    return content


def save_checkpoint(
    checkpoint: dict[str, Any],
    filename: str,
    file_client_args: Any = None,
    backend_args: dict[str, Any] | None = None,
) -> None:
    """Write a training state as a PyTorch file, atomically: a kill leaves the previous file whole.

    The signature is mmengine's; remote backends receive the bytes through mmengine's file interface.
    """
    if file_client_args is None and backend_args is None and '://' not in filename:
        with atomic_path(filename) as temporary:
            torch.save(checkpoint, temporary)
        return
    from mmengine.fileio import FileClient, get_file_backend

    if file_client_args is not None:
        backend: Any = FileClient.infer_client(file_client_args, filename)
    else:
        backend = get_file_backend(filename, backend_args=backend_args)
    with io.BytesIO() as buffer:
        torch.save(checkpoint, buffer)
        backend.put(buffer.getvalue(), filename)


def _load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Download once into torch's cache, then read like any other file."""
    folder = Path(model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    target = folder / os.path.basename(urlparse(url).path)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), progress=progress)
    return read_checkpoint(target, map_location)


def patch_mmengine(module: ModuleType) -> None:
    """Send all loading and saving of ``mmengine.runner.checkpoint`` through this file; safe to call twice.

    mmengine reads weights-only first, but falls back to full unpickling. Everything that loads (``init_cfg``,
    ``load_from``, resume, the inferencers) ends in the functions replaced here.
    """

    def safe_torch_load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(file, map_location)

    def quiet_print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        from mmengine.logging import print_log

        if logger is None:
            logger, level = 'current', level if level >= logging.WARNING else logging.DEBUG
        print_log(msg, logger=logger, level=level)

    replacements: dict[str, Callable[..., Any]] = {
        '_safe_torch_load': safe_torch_load,
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
