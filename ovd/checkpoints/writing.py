"""Write weights (safetensors) and training states (PyTorch files), atomically."""

import copy
import io
import json
import os
import struct
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path
from .comparing import shorten
from .loading import current_logger
from .reading import PathLike


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` to a safetensors file, atomically; equal content gives equal bytes."""
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
    """Sort the metadata keys of a safetensors file: the library writes them in random order."""
    with path.open('r+b') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(length))
        if '__metadata__' not in header:
            return
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def save_checkpoint(
    checkpoint: dict[str, Any],
    filename: str,
    file_client_args: Any = None,
    backend_args: dict[str, Any] | None = None,
) -> None:
    """Write a training state to a PyTorch file, atomically: if interrupted, the previous file stays intact.

    Values that :func:`read_checkpoint` would refuse are converted to plain ones (``Path`` to ``str``, dict
    subclasses to ``dict``) or dropped with a warning. The signature is that of mmengine's function; remote
    backends are written through mmengine's file interface.
    """
    dropped: list[str] = []
    state = _to_plain(checkpoint, '', dropped)
    if dropped:
        current_logger().warning(
            f'{filename}: not saved, because it could not be loaded safely: {shorten(dropped)}'
        )
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
        # How torch reports a full disk.
        raise OSError(f'{name} could not be written: {" ".join(str(error).split())[:200]}') from error


def _to_plain(value: Any, where: str, dropped: list[str]) -> Any:
    """Convert ``value`` to types that :func:`read_checkpoint` accepts; ``dropped`` collects the rest."""
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
            plain[key] = _to_plain(item, f'{where}.{key}' if where else str(key), dropped)
            if plain[key] is _DROPPED:
                del plain[key]
        return plain
    if isinstance(value, list | tuple | deque | set | frozenset):
        items = [_to_plain(item, f'{where}[{index}]', dropped) for index, item in enumerate(value)]
        items = [None if item is _DROPPED else item for item in items]
        kind = tuple if isinstance(value, tuple) else set if isinstance(value, set | frozenset) else list
        return kind(items)
    dropped.append(f'{where} ({type(value).__name__})')
    return _DROPPED


_DROPPED = object()
_PLAIN = (type(None), bool, int, float, str, bytes, slice, torch.dtype, torch.device, torch.Size)
