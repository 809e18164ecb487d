"""Read the tensors of a TorchScript archive without loading its program.

OpenAI published its CLIP weights as such archives, and torch can only load the program. But the archive is a
zip file with a pickle of module attributes and one raw file per storage, which suffice for the weights.
"""

import pickle
import zipfile
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from .pickle_stand_ins import StandIn

_DTYPES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}


def archive_root(file: IO[bytes]) -> str | None:
    """The root folder inside a TorchScript archive; None for another zip file.

    Raises:
        zipfile.BadZipFile: damaged or truncated.
    """
    with zipfile.ZipFile(file) as archive:
        constants = [name for name in archive.namelist() if name.endswith('constants.pkl')]
    file.seek(0)
    return constants[0].removesuffix('constants.pkl') if constants else None


def read_tensors(file: IO[bytes], root: str) -> dict[str, Tensor]:
    """Parameters and buffers by the names of the module's ``state_dict()``.

    Raises:
        UnpicklingError: the archive contains objects other than modules and tensors.
        ValueError, RuntimeError, KeyError: damaged.
    """
    with zipfile.ZipFile(file) as archive:
        order = f'{root}byteorder'
        if order in archive.namelist() and archive.read(order) != b'little':
            raise ValueError('big-endian archives are not supported')
        with archive.open(f'{root}data.pkl') as content:
            module = _ModuleUnpickler(content).load()
        if not isinstance(module, _Node):
            raise UnpicklingError(f'Unsupported class {type(module).__name__}')
        storages: dict[str, Tensor] = {}
        return {name: spec.read(archive, root, storages) for name, spec in _flatten(module, '')}


class _Node(StandIn):
    """A module, or a value that is not a tensor."""

    def value(self) -> Any:
        return None


class _TensorSpec(StandIn):
    """``_rebuild_tensor_v2((dtype, file), offset, size, stride, ...)``."""

    def value(self) -> Any:
        return None

    def read(self, archive: zipfile.ZipFile, root: str, storages: dict[str, Tensor]) -> Tensor:
        """Read the tensor from the archive; ``storages`` caches the raw files."""
        (dtype, key), offset, size, stride = self.args[:4]
        if key not in storages:
            raw = bytearray(archive.read(f'{root}data/{key}'))
            storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return torch.as_strided(storages[key], size, stride, offset).clone()


def _flatten(node: _Node, prefix: str) -> list[tuple[str, _TensorSpec]]:
    found = []
    for name, value in (node.state if isinstance(node.state, dict) else {}).items():
        if isinstance(value, _TensorSpec):
            found.append((f'{prefix}{name}', value))
        elif isinstance(value, _Node):
            found.extend(_flatten(value, f'{prefix}{name}.'))
    return found


class _ModuleUnpickler(pickle.Unpickler):
    """Replaces modules and tensors by stand-ins, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return _TensorSpec
        if module.split('.')[0] == '__torch__' or module == 'torch.jit._pickle':
            return _Node
        if (module, name) == ('collections', 'OrderedDict'):
            return _Node
        raise UnpicklingError(f'GLOBAL {module}.{name}')

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key = pid[:3]
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise UnpicklingError(f'Unsupported class {pid!r}')
        return dtype, key
