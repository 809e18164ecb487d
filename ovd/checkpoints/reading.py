"""Read a checkpoint file without executing anything in it.

torch's weights-only reader builds tensors and plain values only. Training checkpoints of mmengine also have
log histories, numpy arrays and numpy scalars. Their classes are not given to the reader (a numpy dtype with
forged flags corrupts memory) but replaced by inert stand-ins, from which the values are rebuilt afterwards.
"""

import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import load_file
from torch import Tensor

from ..files import require_file
from .pickle_stand_ins import ARRAY_STAND_INS, STAND_INS, rebuild
from .torchscript import archive_root, read_tensors

PathLike = str | os.PathLike[str]

_ZIP_MAGIC = b'PK\x03\x04'
_LEGACY_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'
_DAMAGE = (RuntimeError, EOFError, LookupError, OSError, ValueError, TypeError, AttributeError, ImportError)


class UnsafeCheckpointError(ValueError):
    """Reading the file would execute code or build arbitrary objects."""


def read_checkpoint(source: PathLike | IO[bytes], map_location: Any = None) -> Any:
    """Read a safetensors or PyTorch file without executing anything in it.

    Besides tensors and plain values, only log histories, numeric numpy arrays and numpy scalars are accepted.
    Config text that mmengine would execute on resuming (``meta.config``) is dropped. Of a TorchScript archive
    only the tensors are read.

    Args:
        source: path, or an open binary file.
        map_location: as for ``torch.load``.
    """
    if isinstance(source, str | os.PathLike):
        require_file(source, 'checkpoint')
        with open(source, 'rb') as file:
            return _read(file, str(source), map_location)
    return _read(source, getattr(source, 'name', 'the checkpoint'), map_location)


def _read(file: IO[bytes], name: str, map_location: Any) -> Any:
    head = file.read(512)
    file.seek(0)
    if head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] < 1 << 32:
        return _read_safetensors(file, name, map_location)
    if not head.startswith((_ZIP_MAGIC, _LEGACY_MAGIC)):
        kind = 'a plain pickle, which could execute code' if head[:1] == b'\x80' else 'of an unknown format'
        raise UnsafeCheckpointError(
            f'{name}: refused, the file is {kind}; expected safetensors or a PyTorch checkpoint'
        )
    try:
        # torch.load passes a TorchScript archive to its program loader even if weights_only=True.
        root = archive_root(file) if head.startswith(_ZIP_MAGIC) else None
        if root is not None:
            return read_tensors(file, root)
        with _only_stand_ins():
            content = torch.load(file, map_location=map_location, weights_only=True)
        return _drop_executable_text(rebuild(content))
    except UnpicklingError as error:
        raise UnsafeCheckpointError(_refusal(name, error)) from None
    except (zipfile.BadZipFile, *_DAMAGE) as error:
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


def _refusal(name: str, error: Exception) -> str:
    text = ' '.join(str(error).split())
    found = re.search(r'(?:GLOBAL|function|but got|Unsupported class) (\S+)', text)
    wanted = f'it contains {found[1].rstrip(".,")}' if found else text[:200]
    return (
        f'{name}: refused, {wanted}; only tensors and plain values are read, nothing was executed. '
        'Convert the file to safetensors on a system that trusts it'
    )


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Allow exactly our classes, regardless of what other code has allowed in this process.

    ``torch.serialization.safe_globals`` needs torch 2.5.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_array_pickle(file: IO[bytes], name: str) -> Any:
    """Read a pickle of numeric numpy arrays and plain values in lists and dicts.

    Args:
        file: an open binary file; pickles of any protocol.
        name: name of the file in messages.
    Raises:
        UnsafeCheckpointError: the pickle contains anything else; nothing in it was executed.
        ValueError: damaged or truncated.
    """
    try:
        return rebuild(_ArrayUnpickler(file).load())
    except UnpicklingError as error:
        if 'truncated' in str(error):
            raise ValueError(f'{name}: damaged or truncated pickle ({error})') from None
        raise UnsafeCheckpointError(_refusal(name, error)) from None
    except _DAMAGE as error:
        raise ValueError(f'{name}: damaged or truncated pickle ({error!r})') from None


class _ArrayUnpickler(pickle.Unpickler):
    """Builds the stand-ins of arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        stand_in = ARRAY_STAND_INS.get(full_name)
        if stand_in is None:
            raise UnpicklingError(f'GLOBAL {full_name}')
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise UnpicklingError('GLOBAL persistent_load')


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
