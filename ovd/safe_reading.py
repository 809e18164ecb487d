"""Reading a checkpoint file without executing anything in it.

torch's weights-only reader lets a file build tensors and plain values only. Training checkpoints of mmengine
also hold log histories, numpy arrays and numpy scalars. Their classes are not handed to the reader (a numpy
dtype with forged flags corrupts memory); inert stand-ins are, which keep what the file says, and the values
are rebuilt from that once the file has been read.
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

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import load_file
from torch import Tensor

PathLike = str | os.PathLike[str]

_ZIP_MAGIC = b'PK\x03\x04'
_LEGACY_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'


class UnsafeCheckpointError(ValueError):
    """A file that would have to execute code, or build objects, to be read."""


def read_checkpoint(source: PathLike | IO[bytes], map_location: Any = None) -> Any:
    """Read a safetensors or PyTorch file without executing anything in it.

    Besides tensors and plain values only log histories, numeric numpy arrays and numpy scalars are accepted.
    Config text that mmengine would execute on resuming (``meta.config``) is dropped.

    Args:
        source: path, or an open binary file.
        map_location: as for ``torch.load``.
    """
    if isinstance(source, str | os.PathLike):
        require_file(source)
        with open(source, 'rb') as file:
            return _read(file, str(source), map_location)
    return _read(source, getattr(source, 'name', 'the checkpoint'), map_location)


def require_file(path: PathLike) -> None:
    """Raise ``FileNotFoundError`` or ``ValueError`` unless ``path`` is a file."""
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
        f'{name}: refused, {wanted}, and only tensors and plain values are read; nothing in it was executed. '
        'Convert the file to safetensors where it was made'
    )


class _StandIn:
    """Takes the place of a class while a file is read: keeps what the file says, runs nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> '_StandIn':
        stand_in = super().__new__(cls)
        stand_in.args = args
        stand_in.state = None
        return stand_in

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def rebuild(self) -> Any:
        """The value this stands for, or ``UnpicklingError``."""
        raise NotImplementedError


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


class _NoBytes(_StandIn):
    """``bytes()``: how pickle writes an empty byte string, such as the data of an empty array."""

    def rebuild(self) -> bytes:
        return b''


class _Encoded(_StandIn):
    """``_codecs.encode(text, 'latin1')``: how pickle writes bytes; torch allows it itself from 2.5 on."""

    def rebuild(self) -> bytes:
        return str(self.args[0]).encode('latin1')


class _Set(_StandIn):
    """``set(list)``; torch allows it itself from 2.5 on."""

    def rebuild(self) -> set[Any]:
        return set(_rebuild(list(self.args[0])))


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
        return np.frombuffer(_rebuild(raw), dtype=_rebuild(dtype), count=1)[0].item()


class _Array(_StandIn):
    """``numpy.core.multiarray._reconstruct`` followed by (version, shape, dtype, is_fortran, bytes)."""

    def rebuild(self) -> Any:
        if self.state is None:
            return None
        _, shape, dtype, is_fortran, raw = self.state
        values = np.frombuffer(_rebuild(raw), dtype=_rebuild(dtype))
        return values.reshape(shape, order='F' if is_fortran else 'C').copy(order='K')


class _Buffer(_StandIn):
    """``numpy.core.numeric._frombuffer(bytes, dtype, shape, order)``, of pickle protocol 5."""

    def rebuild(self) -> Any:
        raw, dtype, shape, order = self.args
        return np.frombuffer(_rebuild(raw), dtype=_rebuild(dtype)).reshape(shape, order=order).copy(order='K')


def _stand_in(full_name: str, kind: type[_StandIn]) -> type[_StandIn]:
    module, _, name = full_name.rpartition('.')
    return type(name, (kind,), {'__module__': module, '__qualname__': name})


_STAND_INS: list[Any] = [
    _stand_in('mmengine.logging.history_buffer.HistoryBuffer', _History),
    _stand_in('builtins.getattr', _Method),
    _stand_in('builtins.bytes', _NoBytes),
    _stand_in('builtins.set', _Set),
    _stand_in('_codecs.encode', _Encoded),
    _stand_in('numpy.dtype', _Dtype),
    _stand_in('numpy.ndarray', _Array),
    *(
        _stand_in(f'numpy.{core}.multiarray.{name}', kind)
        for core in ('core', '_core')
        for name, kind in (('_reconstruct', _Array), ('scalar', _Scalar))
    ),
    *(_stand_in(f'numpy.{core}.numeric._frombuffer', _Buffer) for core in ('core', '_core')),
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
        return value.rebuild()
    if isinstance(value, tuple):
        items = [_rebuild(item, seen) for item in value]
        return value if all(a is b for a, b in zip(items, value)) else tuple(items)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _rebuild(item, seen)
    return value


def read_array_pickle(file: IO[bytes], name: str) -> Any:
    """Read a pickle of lists, dicts and plain values of numeric numpy arrays.

    Args:
        file: an open binary file; pickles of any protocol.
        name: for messages.
    Raises:
        UnsafeCheckpointError: the pickle asks for anything else (it is named); nothing in it was executed.
        ValueError: damaged or truncated.
    """
    try:
        return _rebuild(_ArrayUnpickler(file).load())
    except UnpicklingError as error:
        if 'truncated' in str(error):
            raise ValueError(f'{name}: damaged or truncated pickle ({error})') from None
        raise UnsafeCheckpointError(_refusal(name, error)) from None
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f'{name}: damaged or truncated pickle ({error!r})') from None


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the stand-ins of arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        stand_in = _ARRAY_STAND_INS.get(full_name)
        if stand_in is None:
            raise UnpicklingError(f'GLOBAL {full_name}')
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise UnpicklingError('GLOBAL persistent_load')


_ARRAY_STAND_INS = {
    f'{kind.__module__}.{kind.__qualname__}': kind
    for kind in _STAND_INS
    if kind is not slice and kind.__module__.startswith(('numpy', '_codecs', 'builtins'))
}


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
