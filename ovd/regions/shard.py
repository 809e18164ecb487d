"""One shard of a region store: a safetensors file with checksums of its content.

Tensors, for I images with R rows in total and width D: ``image_ids`` [I], ``first_row`` [I + 1] and ``crc32``
[I] (int64), ``boxes`` [R, 4] (float32), ``scores`` [R] (float32), ``embeddings`` [R, D] (float16, row-major:
the rows of an image are contiguous). The metadata entry ``ovd_region_shard`` holds the index of the shard,
the hash of the store's settings, and the SHA-256 of the tensors.
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from ..files import require_file

_KEY = 'ovd_region_shard'
_TYPES = {'I64': np.int64, 'F32': np.float32, 'F16': np.float16}
_TENSORS = {
    'image_ids': ('I64', 1),
    'first_row': ('I64', 1),
    'crc32': ('I64', 1),
    'boxes': ('F32', 2),
    'scores': ('F32', 1),
    'embeddings': ('F16', 2),
}
_MAX_HEADER = 1 << 20


class RegionRows(NamedTuple):
    """Rows of one image.

    Boxes [M, 4] float32 xyxy in original pixels, scores [M] float32, embeddings [M, D] float16.
    """

    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray


@dataclass
class Shard:
    """An open shard: its metadata, and read-only views of the memory-mapped tensors."""

    path: Path
    index: int
    settings_sha256: str
    content_sha256: str
    header_sha256: str
    num_bytes: int
    tensors: dict[str, np.ndarray]

    def rows(self, position: int) -> RegionRows:
        """Rows of the image at index ``position`` of this shard; views, not copies."""
        first, last = self.tensors['first_row'][position : position + 2]
        return RegionRows(*(self.tensors[name][first:last] for name in ('boxes', 'scores', 'embeddings')))

    def rows_are_intact(self, position: int) -> bool:
        """Whether the rows of the image match their CRC-32."""
        return rows_crc32(self.rows(position)) == int(self.tensors['crc32'][position])

    def check_content(self) -> None:
        """Raise ValueError unless the tensors match the recorded SHA-256."""
        if _content_sha256(self.tensors) != self.content_sha256:
            raise ValueError(f'region shard {self.path} is damaged: its SHA-256 is not the recorded one')


def shard_name(index: int) -> str:
    """File name of shard ``index``."""
    return f'shard-{index:06d}.safetensors'


def rows_crc32(rows: RegionRows) -> int:
    """CRC-32 over boxes, scores and embeddings of one image."""
    checksum = 0
    for array in rows:
        checksum = zlib.crc32(_bytes_of(array), checksum)
    return checksum


def encode_shard(
    index: int, settings_sha256: str, embed_dim: int, image_ids: list[int], rows: list[RegionRows]
) -> bytes:
    """Encode a shard file; equal input gives equal bytes."""
    counts = [len(item.scores) for item in rows]
    tensors = {
        'image_ids': np.array(image_ids, dtype=np.int64),
        'first_row': np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        'crc32': np.array([rows_crc32(item) for item in rows], dtype=np.int64),
        'boxes': np.concatenate([item.boxes for item in rows]).reshape(-1, 4),
        'scores': np.concatenate([item.scores for item in rows]),
        'embeddings': np.concatenate([item.embeddings for item in rows]).reshape(-1, embed_dim),
    }
    about = {'index': index, 'settings_sha256': settings_sha256, 'content_sha256': _content_sha256(tensors)}
    return save(tensors, metadata={_KEY: json.dumps(about, sort_keys=True)})


def open_shard(path: Path) -> Shard:
    """Map a shard and check its structure, but not its checksums.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged or not a region shard.
    """
    require_file(path, 'region shard')
    num_bytes = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = file.read(min(length, _MAX_HEADER))
        try:
            entries = json.loads(header)
            about = json.loads(entries.pop('__metadata__')[_KEY])
            index, settings, content = (about[k] for k in ('index', 'settings_sha256', 'content_sha256'))
            end = max(int(entry['data_offsets'][1]) for entry in entries.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f'{path} is truncated, damaged or not a region shard') from None
        if num_bytes < 8 + length + end:
            raise ValueError(
                f'region shard {path} is truncated: it has {num_bytes} bytes, expected {8 + length + end}'
            )
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = _map_tensors(path, buffer, entries, 8 + length)
    digest = hashlib.sha256(header).hexdigest()
    return Shard(path, index, settings, content, digest, num_bytes, tensors)


def _map_tensors(path: Path, buffer: Any, entries: dict[str, Any], start: int) -> dict[str, np.ndarray]:
    tensors = {}
    try:
        for name, (kind, dims) in _TENSORS.items():
            entry = entries[name]
            first, last = entry['data_offsets']
            count = int(np.prod(entry['shape']))
            dtype = np.dtype(_TYPES[kind])
            if (
                entry['dtype'] != kind
                or len(entry['shape']) != dims
                or last - first != count * dtype.itemsize
            ):
                raise ValueError
            array = np.frombuffer(buffer, dtype, count, start + first) if count else np.empty(0, dtype)
            tensors[name] = array.reshape(entry['shape'])
        images, rows = len(tensors['image_ids']), len(tensors['scores'])
        first_row = tensors['first_row']
        consistent = (
            len(first_row) == images + 1
            and len(tensors['crc32']) == images
            and first_row[0] == 0
            and first_row[-1] == rows
            and bool((np.diff(first_row) >= 0).all())
            and tensors['boxes'].shape == (rows, 4)
            and len(tensors['embeddings']) == rows
        )
        if not consistent:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        raise ValueError(f'region shard {path} is damaged: its tensors are inconsistent') from None
    return tensors


def _content_sha256(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f'{name} {array.shape} {array.dtype.str} '.encode())
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def _bytes_of(array: np.ndarray) -> memoryview:
    """Bytes of an array; no copy if it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def publish(path: Path, content: bytes, rank: int) -> None:
    """Write a file atomically: to a temporary name of this rank, flushed to disk, then renamed."""
    temporary = path.with_name(f'.{path.name}.rank{rank}.tmp')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unfinished_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Temporary files left in ``folder`` by killed writers, with their ranks."""
    for path in folder.glob('.*.rank*.tmp'):
        rank = path.name.removesuffix('.tmp').rsplit('.rank', 1)[1]
        if rank.isdigit():
            yield path, int(rank)
