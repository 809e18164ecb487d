"""Weights cut into several files, with an index that says which file holds which tensor."""

import json
import os
from pathlib import Path

from torch import Tensor

from .reading import PathLike, read_checkpoint

INDEX_SUFFIX = '.index.json'
_MAX_INDEX_BYTES = 64 << 20


def is_index(path: PathLike) -> bool:
    """Whether a path is named as the index of sharded weights is."""
    return os.fspath(path).endswith(INDEX_SUFFIX)


def shard_names(index: PathLike) -> list[str]:
    """The files that an index lists, sorted.

    Raises:
        FileNotFoundError: no such index.
        ValueError: not an index, or one that names a file outside its own folder.
    """
    return sorted(set(_weight_map(Path(index)).values()))


def load_shards(index: PathLike, device: object = 'cpu') -> dict[str, Tensor]:
    """Named tensors of all the files that an index lists.

    Source: the layout of huggingface/transformers, ``model.safetensors.index.json`` with ``weight_map``.

    Args:
        index: the index; its files lie beside it.
        device: where the tensors go.
    Raises:
        FileNotFoundError: the index or one of its files is absent.
        ValueError: a damaged index or file, a tensor that is not where the index says.
    """
    index = Path(index)
    places = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if not path.is_file():
            raise FileNotFoundError(f'{path}, one of the files that {index.name} lists, does not exist')
        content = read_checkpoint(path, map_location=device)
        wanted = [key for key, where in places.items() if where == name]
        missing = [key for key in wanted if not isinstance(content.get(key), Tensor)]
        if missing:
            raise ValueError(f'{path} does not hold {missing[0]!r}, which {index.name} says it does')
        tensors.update({key: content[key] for key in wanted})
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, with file names that stay in the folder."""
    if not index.is_file():
        raise FileNotFoundError(f'index of weights {index} does not exist')
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f'larger than {_MAX_INDEX_BYTES >> 20} MiB')
        content = json.loads(index.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'index of weights {index} cannot be read: {error}') from None
    places = content.get('weight_map') if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"index of weights {index} has no 'weight_map' of tensors")
    for key, name in places.items():
        if not isinstance(name, str) or name in ('', '.', '..') or set(name) & set('/\\:'):
            raise ValueError(f'index of weights {index}: {key!r} lies in {name!r}, expected a file beside it')
    return places
