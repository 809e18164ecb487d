"""Inert stand-ins for classes that a checkpoint may contain besides tensors.

While a file is read, they replace mmengine's log history, numpy's arrays, dtypes and scalars, Lightning's
callbacks, OmegaConf's configurations and a few builtins: they store the arguments and execute nothing.
:func:`rebuild` computes the values afterwards.
"""

import re
from pickle import UnpicklingError
from typing import Any

import numpy as np


class StandIn:
    """Replaces a class while a file is read: stores arguments and state, executes nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> 'StandIn':
        stand_in = super().__new__(cls)
        stand_in.args = args
        stand_in.state = None
        return stand_in

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> Any:
        """Compute the value; raise ``UnpicklingError`` if it is refused."""
        raise NotImplementedError


class _Unread(StandIn):
    """A class whose objects are not needed, such as callbacks: read as None."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def value(self) -> None:
        return None


class _TypeName(StandIn):
    """A type, for example the factory of a defaultdict; its objects are refused."""

    def value(self) -> Any:
        raise UnpicklingError(f'Unsupported class {type(self).__module__}.{type(self).__name__}')


class _DefaultDict(StandIn):
    """``collections.defaultdict``, as a dictionary."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.state is None:
            self.state = {}
        self.state[key] = value

    def value(self) -> dict[Any, Any]:
        return rebuild(self.state or {})


class _History(StandIn):
    """mmengine's ``HistoryBuffer``: two numeric arrays."""

    def value(self) -> Any:
        from mmengine.logging import HistoryBuffer

        state = self.state if isinstance(self.state, dict) else {}
        history = HistoryBuffer(max_length=int(state.get('max_length', 1_000_000)))
        history._log_history = np.asarray(rebuild(state.get('_log_history', [])), dtype=np.float64)
        history._count_history = np.asarray(rebuild(state.get('_count_history', [])))
        return history


class _Method(StandIn):
    """``getattr``, with which a log history names its statistics; not needed, read as None."""

    def value(self) -> Any:
        return None


class _NoBytes(StandIn):
    """``bytes()``: how pickle writes an empty byte string, such as the data of an empty array."""

    def value(self) -> bytes:
        return b''


class _Encoded(StandIn):
    """``_codecs.encode(text, 'latin1')``: how pickle writes bytes; torch allows it itself from 2.5 on."""

    def value(self) -> bytes:
        return str(self.args[0]).encode('latin1')


class _Set(StandIn):
    """``set(list)``; torch allows it itself from 2.5 on."""

    def value(self) -> set[Any]:
        return set(rebuild(list(self.args[0])))


class _Dtype(StandIn):
    """``numpy.dtype``: numbers and text only."""

    def value(self) -> np.dtype[Any]:
        code = self.args[0] if self.args else ''
        if not isinstance(code, str) or not re.fullmatch(r'[biufUS]\d{1,4}|\?', code):
            raise UnpicklingError(f'Unsupported class numpy.dtype({code!r})')
        is_big_endian = isinstance(self.state, tuple) and self.state[1:2] == ('>',)
        return np.dtype(code).newbyteorder('>' if is_big_endian else '=')


class _Scalar(StandIn):
    """``numpy.core.multiarray.scalar(dtype, bytes)``."""

    def value(self) -> Any:
        dtype, raw = self.args
        return np.frombuffer(rebuild(raw), dtype=rebuild(dtype), count=1)[0].item()


class _Array(StandIn):
    """``numpy.core.multiarray._reconstruct`` followed by (version, shape, dtype, is_fortran, bytes)."""

    def value(self) -> Any:
        if self.state is None:
            return None
        _, shape, dtype, is_fortran, raw = self.state
        values = np.frombuffer(rebuild(raw), dtype=rebuild(dtype))
        return values.reshape(shape, order='F' if is_fortran else 'C').copy(order='K')


class _Buffer(StandIn):
    """``numpy.core.numeric._frombuffer(bytes, dtype, shape, order)``, of pickle protocol 5."""

    def value(self) -> Any:
        raw, dtype, shape, order = self.args
        return np.frombuffer(rebuild(raw), dtype=rebuild(dtype)).reshape(shape, order=order).copy(order='K')


def _stand_in(full_name: str, kind: type[StandIn]) -> type[StandIn]:
    module, _, name = full_name.rpartition('.')
    return type(name, (kind,), {'__module__': module, '__qualname__': name})


STAND_INS: list[Any] = [
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
    *(
        _stand_in(f'pytorch_lightning.{name}', _Unread)
        for name in (
            'callbacks.early_stopping.EarlyStopping',
            'callbacks.lr_monitor.LearningRateMonitor',
            'callbacks.model_checkpoint.ModelCheckpoint',
            'utilities.parsing.AttributeDict',
        )
    ),
    *(
        _stand_in(f'omegaconf.{name}', _Unread)
        for name in (
            'base.ContainerMetadata',
            'base.Metadata',
            'dictconfig.DictConfig',
            'listconfig.ListConfig',
            'nodes.AnyNode',
        )
    ),
    _stand_in('collections.defaultdict', _DefaultDict),
    *(
        _stand_in(name, _TypeName)
        for name in ('builtins.dict', 'builtins.list', 'builtins.int', 'typing.Any')
    ),
    slice,
]


def rebuild(value: Any, seen: set[int] | None = None) -> Any:
    """Replace stand-ins by their values inside dicts, lists and tuples; in place where possible."""
    seen = set() if seen is None else seen
    if isinstance(value, StandIn):
        return value.value()
    if isinstance(value, tuple):
        items = [rebuild(item, seen) for item in value]
        return value if all(a is b for a, b in zip(items, value)) else tuple(items)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = rebuild(item, seen)
    return value


ARRAY_STAND_INS = {
    f'{kind.__module__}.{kind.__qualname__}': kind
    for kind in STAND_INS
    if kind is not slice and kind.__module__.startswith(('numpy', '_codecs', 'builtins'))
}
