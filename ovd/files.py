"""Atomic writes, content hashes, and the check that a file exists."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def model_home() -> Path:
    """Where models that are known by name lie: ``$OVD_HOME``, or ``~/.cache/ovd/models``."""
    return Path(os.environ.get('OVD_HOME') or Path.home() / '.cache' / 'ovd' / 'models')


def named_model(name: str) -> Path | None:
    """The folder of a model that is known by name; None for other texts, and for names that are not there."""
    is_name = bool(name) and not name.startswith('.') and not set(name) & set('/\\:')
    return model_home() / name if is_name and (model_home() / name).is_dir() else None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there, flushed to disk, when the block succeeds.

    A crash or an exception leaves ``path`` as it was and removes the temporary file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f'.{target.name}.', suffix='.tmp')
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open('rb') as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def require_file(path: str | os.PathLike[str], what: str = 'file') -> None:
    """Raise FileNotFoundError unless ``path`` is a file; ``what`` describes it in the message."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{what} {path} does not exist')


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + '\n', encoding='utf-8')


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_tensors(tensors: 'Mapping[str, Tensor]') -> str:
    """Hexadecimal SHA-256 of named tensors: names, shapes, types and bytes, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype} '.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
