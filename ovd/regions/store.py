"""RegionStore: CLIP embeddings of the proposals of many images, sharded, checksummed and memory-mapped.

A folder holds ``header.json`` (settings), ``shard-*.safetensors`` (see shard.py) and, once all shards exist,
``index.safetensors`` and ``manifest.json``. Shards are consecutive runs of images, so the layout does not
depend on the number of ranks. Each shard is written by one rank and renamed atomically: a killed job leaves
complete shards only and continues with the missing ones. Ranks do not communicate: the last one to finish
writes the manifest.
"""

import errno
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from ..files import sha256_file, sha256_json
from .shard import RegionRows, Shard, encode_shard, open_shard, publish, shard_name, unfinished_files

_FORMAT = 'ovd.region_store/1'
_NOT_SETTINGS = ('made_with', 'image_count', 'image_ids_sha256')
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROWS_PER_SHARD = 8192
_OPEN_SHARDS = 128


def images_per_shard(max_regions: int) -> int:
    """Default number of images per shard: about 8 MB of rows of width 512, the work a killed job repeats."""
    return max(1, _ROWS_PER_SHARD // max(1, max_regions))


class RegionStoreWriter:
    """Write the shards of one rank; several ranks (processes, machines) can write to one folder.

    Args:
        folder: the store; created if absent, continued if it has shards of the same settings.
        header: JSON values. Required: clip_fingerprint (str), embed_dim D, max_regions M, crops (dict),
            proposals (dict). ``images_per_shard`` has a default. ``made_with`` is recorded but not compared;
            everything else must be equal to continue a store.
        rank, world_size: this writer makes the shards whose index is ``rank`` modulo ``world_size``.
    Raises:
        ValueError: the folder holds a store of other settings (they are named), or another job writes to it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], header: dict[str, Any], rank: int = 0, world_size: int = 1
    ):
        self.folder = Path(folder)
        self.header = {
            'format': _FORMAT,
            'images_per_shard': images_per_shard(int(header['max_regions'])),
            **json.loads(json.dumps(header)),
        }
        self.rank, self.world_size = rank, world_size
        self._plan: list[list[int]] = []
        self._position: dict[int, int] = {}
        self._todo: list[int] = []
        self._rows: list[RegionRows] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = _lock_folder(self.folder) if rank == 0 else None
        self._unlock = weakref.finalize(self, os.close, handle) if handle is not None else lambda: None
        self._check_settings()

    def pending(self, image_ids: Sequence[int]) -> list[int]:
        """Image ids that this rank has to ``add``, in that order.

        Args:
            image_ids: all images of the store, in order. A store of the first n of them is extended.
        Raises:
            ValueError: no or repeated ids; the store has other or more images; a finished shard is damaged or
                belongs to another store (it is named).
        """
        ids = [int(image_id) for image_id in image_ids]
        if not ids or len(set(ids)) != len(ids):
            raise ValueError('a region store needs at least one image, and image ids that occur once')
        self._check_plan(ids)
        size = int(self.header['images_per_shard'])
        self._position = {image_id: position for position, image_id in enumerate(ids)}
        self._plan = [ids[start : start + size] for start in range(0, len(ids), size)]
        self._todo = [index for index in self._own_shards() if not self._is_finished(index)]
        recorded = self._read_header()
        if recorded is not None and 'made_with' in recorded:
            self.header['made_with'] = recorded['made_with']
        self.header.update(image_count=len(ids), image_ids_sha256=sha256_json(ids))
        if self._todo or recorded != self.header:
            for name in ('manifest.json', 'index.safetensors'):
                (self.folder / name).unlink(missing_ok=True)
        if recorded != self.header:
            self._publish('header.json', _json_bytes(self.header))
        self._remove_leftovers()
        return [image_id for index in self._todo for image_id in self._plan[index]]

    def shard_of(self, image_id: int) -> int:
        """Index of the shard of ``image_id``; batches must not cross shards, or their bits could differ."""
        return self._position[image_id] // int(self.header['images_per_shard'])

    @property
    def num_finished(self) -> int:
        """Number of shards on disk, of all ranks."""
        return sum((self.folder / shard_name(index)).is_file() for index in range(len(self._plan)))

    @property
    def num_shards(self) -> int:
        """Number of shards of the complete store."""
        return len(self._plan)

    def add(self, image_id: int, boxes: Any, scores: Any, embeddings: Any) -> None:
        """Add the next pending image; a shard is written with its last image.

        Args:
            image_id: the next id of ``pending``.
            boxes: [m, 4] xyxy in original pixels, m <= max_regions, array or tensor.
            scores: [m].
            embeddings: [m, D].
        Raises:
            ValueError: another image than the next one; wrong shapes; values that are not finite.
            OSError: the disk is full; the shards written before are complete.
        """
        shard = self._todo[0] if self._todo else None
        expected = self._plan[shard][len(self._rows)] if shard is not None else None
        if shard is None or image_id != expected:
            raise ValueError(f'image {image_id} was added, but the next pending image is {expected}')
        self._rows.append(self._check_rows(image_id, boxes, scores, embeddings))
        if len(self._rows) == len(self._plan[shard]):
            content = encode_shard(
                shard, self._settings_sha256, self.header['embed_dim'], self._plan[shard], self._rows
            )
            self._publish(shard_name(shard), content)
            self._rows = []
            self._todo.pop(0)

    def __enter__(self) -> 'RegionStoreWriter':
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock of the folder, also after an error."""
        self._unlock()

    def close(self) -> dict[str, Any] | None:
        """Write index and manifest if all shards exist; return the manifest, or None."""
        try:
            shards = self._all_shards()
            return None if shards is None else self._write_manifest(shards)
        finally:
            self._unlock()

    @property
    def _settings_sha256(self) -> str:
        return sha256_json(_settings(self.header))

    def _own_shards(self) -> range:
        return range(self.rank, len(self._plan), self.world_size)

    def _read_header(self) -> dict[str, Any] | None:
        path = self.folder / 'header.json'
        return _read_json(path) if path.is_file() and any(self.folder.glob('shard-*.safetensors')) else None

    def _check_settings(self) -> None:
        recorded = self._read_header()
        if recorded is not None:
            given, made = _settings(self.header), _settings(recorded)
            expected = {key: given.get(key) for key in {*given, *made}}
            _compare_header(self.folder, made, expected, 'choose another folder or delete this one')

    def _check_plan(self, ids: list[int]) -> None:
        recorded = self._read_header()
        if recorded is None:
            return
        count = recorded['image_count']
        if sha256_json(ids[:count]) != recorded['image_ids_sha256']:
            raise ValueError(
                f'region store {self.folder} has {count} images, which are not the first of the {len(ids)} '
                'given; choose another folder'
            )

    def _is_finished(self, index: int) -> bool:
        path = self.folder / shard_name(index)
        if not path.exists():
            return False
        try:
            shard = open_shard(path)
            shard.check_content()
        except ValueError as error:
            raise ValueError(f'{error}; delete the file and run again') from None
        planned, found = self._plan[index], shard.tensors['image_ids'].tolist()
        if (
            shard.settings_sha256 != self._settings_sha256
            or shard.index != index
            or found != planned[: len(found)]
        ):
            raise ValueError(f'region shard {path} belongs to another store; delete the file and run again')
        return found == planned

    def _check_rows(self, image_id: int, boxes: Any, scores: Any, embeddings: Any) -> RegionRows:
        limit, embed_dim = self.header['max_regions'], self.header['embed_dim']
        rows = RegionRows(*(_to_numpy(v, t) for v, t in ((boxes, 'f4'), (scores, 'f4'), (embeddings, 'f2'))))
        count = len(rows.scores)
        shapes = tuple(array.shape for array in rows)
        if shapes != ((count, 4), (count,), (count, embed_dim)) or count > limit:
            raise ValueError(
                f'image {image_id}: expected boxes [m, 4], scores [m], embeddings [m, {embed_dim}] with '
                f'm <= {limit}, got {[list(shape) for shape in shapes]}'
            )
        for name, array in zip(RegionRows._fields, rows):
            if not np.isfinite(array).all():
                raise ValueError(f'image {image_id}: {name} are not finite in {array.dtype}')
        return rows

    def _publish(self, name: str, content: bytes) -> None:
        try:
            publish(self.folder / name, content, self.rank)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise OSError(
                f'no space left for {self.folder / name} ({len(content)} bytes); {self.num_finished} of '
                f'{self.num_shards} shards are safe: free some space and run the same command again'
            ) from error

    def _remove_leftovers(self) -> None:
        """Delete temporary files of a killed job; those of rank r by rank r modulo world_size."""
        for path, rank in unfinished_files(self.folder):
            if rank % self.world_size == self.rank:
                path.unlink(missing_ok=True)

    def _all_shards(self) -> 'list[_ShardSummary] | None':
        """Summaries of all shards of all ranks, or None while one is missing."""
        summaries = []
        for index, planned in enumerate(self._plan):
            path = self.folder / shard_name(index)
            if not path.exists():
                return None
            summaries.append(_summarize(open_shard(path)))
            if summaries[-1].image_ids.tolist() != planned:
                return None
        return summaries or None

    def _write_manifest(self, shards: 'list[_ShardSummary]') -> dict[str, Any]:
        index = {
            'image_ids': np.concatenate([shard.image_ids for shard in shards]),
            'shards': np.repeat(
                np.arange(len(shards), dtype=np.int64), [len(shard.image_ids) for shard in shards]
            ),
            'counts': np.concatenate([shard.counts for shard in shards]),
        }
        index_path = self.folder / 'index.safetensors'
        self._publish(index_path.name, save(index))
        manifest = {
            **self.header,
            'rows': int(index['counts'].sum()),
            'index_sha256': sha256_file(index_path),
            'shards': [shard.entry for shard in shards],
        }
        self._publish('manifest.json', _json_bytes(manifest))
        return manifest


class _ShardSummary(NamedTuple):
    """Entries of a shard in index and manifest."""

    image_ids: np.ndarray
    counts: np.ndarray
    entry: dict[str, Any]


def _summarize(shard: Shard) -> _ShardSummary:
    """Summarise a shard by copies: views would keep its file open, and there may be thousands."""
    return _ShardSummary(
        shard.tensors['image_ids'].copy(),
        np.diff(shard.tensors['first_row']),
        {
            'name': shard.path.name,
            'images': len(shard.tensors['image_ids']),
            'rows': len(shard.tensors['scores']),
            'bytes': shard.num_bytes,
            'header_sha256': shard.header_sha256,
            'content_sha256': shard.content_sha256,
        },
    )


class RegionStore:
    """Read a finished store. Rows are views of memory-mapped files, so that processes share the page cache.

    Picklable and fork-safe: each DataLoader worker maps the shards it reads.

    Args:
        folder: the store.
        check_rows: verify the CRC-32 of an image's rows the first time this process reads them.
    Raises:
        FileNotFoundError: no store in the folder.
        ValueError: the store is unfinished, or its manifest or index is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], check_rows: bool = True):
        self.folder = Path(folder)
        self.check_rows = check_rows
        path = self.folder / 'manifest.json'
        if not path.is_file():
            if (self.folder / 'header.json').is_file():
                made = sum(1 for _ in self.folder.glob('shard-*.safetensors'))
                raise ValueError(
                    f'region store {self.folder} is unfinished ({made} shards so far): '
                    'run tools/cache_clip_regions.py again to continue'
                )
            raise FileNotFoundError(
                f'no region store at {self.folder}: {path.name} is missing; make it with '
                'tools/cache_clip_regions.py'
            )
        self.manifest = _read_json(path)
        if self.manifest.get('format') != _FORMAT:
            raise ValueError(f'{path} has format {self.manifest.get("format")!r}, expected {_FORMAT!r}')
        self._image_ids, self._shard_of, self._counts = self._load_index()
        self._position = {int(image_id): position for position, image_id in enumerate(self._image_ids)}
        self._first_position = np.searchsorted(self._shard_of, np.arange(len(self.manifest['shards'])))
        self._checked = bytearray(len(self._image_ids))
        self._open: OrderedDict[int, Shard] = OrderedDict()

    @property
    def header(self) -> dict[str, Any]:
        """Settings and counts of the store."""
        return {key: value for key, value in self.manifest.items() if key not in ('shards', 'index_sha256')}

    @property
    def image_ids(self) -> np.ndarray:
        """Image ids in the order of the store, int64 [N]."""
        return self._image_ids

    @property
    def num_rows(self) -> int:
        """Number of rows of all images."""
        return int(self.manifest['rows'])

    def __len__(self) -> int:
        return len(self._image_ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._position

    def count(self, image_id: int) -> int:
        """Number of rows of an image, without opening its shard."""
        return int(self._counts[self._position_of(image_id)])

    def read(self, image_id: int) -> RegionRows:
        """Rows of one image: boxes [M, 4], scores [M], embeddings [M, D]; read-only views.

        Raises:
            KeyError: the image is not in the store.
            ValueError: its shard is truncated, damaged or belongs to another store.
        """
        position = self._position_of(image_id)
        index = int(self._shard_of[position])
        in_shard = position - int(self._first_position[index])
        shard = self._shard(index)
        rows = shard.rows(in_shard)
        if self.check_rows and not self._checked[position]:
            if int(shard.tensors['image_ids'][in_shard]) != image_id or not shard.rows_are_intact(in_shard):
                raise ValueError(
                    f'region shard {shard.path} is damaged: image {image_id} has another CRC-32 than recorded'
                )
            self._checked[position] = 1
        return rows

    def check(self, **expected: Any) -> None:
        """Raise a ValueError that lists every header value that differs from the expected one."""
        _compare_header(self.folder, self.header, expected, 'make the store again for this setting')

    def verify_shards(self, sample: float = 1.0, seed: int = 0) -> Iterator[tuple[str, str | None]]:
        """Recompute the checksums of a random share of the shards: yield (name, problem or None)."""
        total = len(self.manifest['shards'])
        count = max(1, round(sample * total))
        chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count])
        for index in chosen.tolist():
            problem = None
            try:
                self._open_shard(index).check_content()
            except (ValueError, FileNotFoundError) as error:
                problem = str(error)
            yield self.manifest['shards'][index]['name'], problem
        known = {entry['name'] for entry in self.manifest['shards']}
        for path in sorted(self.folder.glob('shard-*.safetensors')):
            if path.name not in known:
                yield path.name, f'region shard {path} belongs to another store: it is not in the manifest'

    def verify(self, sample: float = 1.0, seed: int = 0) -> int:
        """Recompute checksums; return the number of shards. A ValueError lists every bad shard."""
        results = list(self.verify_shards(sample, seed))
        problems = [problem for _, problem in results if problem]
        if problems:
            raise ValueError('; '.join(problems))
        return len(results)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_open': OrderedDict()}

    def _load_index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        path = self.folder / 'index.safetensors'
        if sha256_file(path) != self.manifest['index_sha256']:
            raise ValueError(f'{path} is damaged: its SHA-256 is not that of the manifest')
        index = load_file(path)
        return index['image_ids'], index['shards'], index['counts']

    def _position_of(self, image_id: int) -> int:
        if image_id not in self._position:
            raise KeyError(
                f'image {image_id} is not in the region store {self.folder} ({len(self)} images); '
                'complete it with tools/cache_clip_regions.py without --limit'
            )
        return self._position[image_id]

    def _shard(self, index: int) -> Shard:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        shard = self._open_shard(index)
        self._open[index] = shard
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard

    def _open_shard(self, index: int) -> Shard:
        entry = self.manifest['shards'][index]
        shard = open_shard(self.folder / entry['name'])
        if shard.header_sha256 != entry['header_sha256'] or shard.num_bytes != entry['bytes']:
            settings = sha256_json(_settings(self.manifest))
            reason = (
                'belongs to another store'
                if shard.settings_sha256 != settings or shard.index != index
                else 'is damaged or was replaced'
            )
            raise ValueError(f'region shard {shard.path} {reason}: it is not the file in the manifest')
        return shard


def _settings(header: dict[str, Any]) -> dict[str, Any]:
    skip = (*_NOT_SETTINGS, 'rows', 'index_sha256', 'shards')
    return {key: value for key, value in header.items() if key not in skip}


def _compare_header(folder: Path, found: dict[str, Any], expected: dict[str, Any], remedy: str) -> None:
    differences = [
        f'{key} is {found.get(key)!r}, expected {value!r}'
        for key, value in sorted(json.loads(json.dumps(expected)).items())
        if found.get(key) != value
    ]
    if differences:
        raise ValueError(f'region store {folder} does not match: {"; ".join(differences)}; {remedy}')


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + '\n').encode()


def _to_numpy(values: Any, dtype: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, 'detach') else np.asarray(values)
    return np.ascontiguousarray(array, dtype=np.dtype(dtype))


def _lock_folder(folder: Path) -> int | None:
    """Lock the folder for this process, if the platform can; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f'another job is writing to region store {folder}') from None
    except OSError:
        os.close(handle)
        return None
    return handle
