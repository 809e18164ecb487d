"""Read proposal files: boxes of many images, by image id, without unpickling.

Formats: COCO results (``.json``: image_id, bbox [x, y, w, h], score), ``.npz`` (``image_ids`` [I], ``counts``
[I], ``boxes`` [R, 4] xyxy, ``scores`` [R]), a region store (its boxes), and DetPro's ``.pkl``: a list of
arrays [n, 4 or 5] in the order of the images. All boxes are in original pixels.
"""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.reading import read_array_pickle
from ..files import require_file, sha256_file
from ..options import check_option
from .store import RegionStore


@dataclass
class ProposalTable:
    """Proposals of many images: boxes [R, 4] float32 xyxy in original pixels, scores [R] float32.

    ``first_row`` and ``counts`` locate the rows of an image id. If ``is_complete``, the file lists every
    image, and an unknown id is an error; otherwise it is an image without proposals. ``has_scores`` tells
    whether the scores come from the file; otherwise they are 1. ``segmentations`` holds a COCO segmentation
    for each row, where the file has them.
    """

    source: str
    sha256: str
    first_row: dict[int, int]
    counts: dict[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    is_complete: bool
    has_scores: bool = True
    segmentations: list[Any] | None = None

    def count(self, image_id: int) -> int:
        """Number of proposals of an image.

        Raises:
            KeyError: the file does not list the image.
        """
        if image_id not in self.counts:
            if self.is_complete:
                raise KeyError(f'proposal file {self.source} has no image {image_id}')
            return 0
        return self.counts[image_id]

    def rows(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [n, 4] and scores [n] of an image."""
        count = self.count(image_id)
        first = self.first_row.get(image_id, 0)
        return self.boxes[first : first + count], self.scores[first : first + count]

    def masks(self, image_id: int) -> list[Any] | None:
        """COCO segmentations of an image's rows, in their order; None where the file has none."""
        if self.segmentations is None:
            return None
        first = self.first_row.get(image_id, 0)
        return self.segmentations[first : first + self.count(image_id)]


def read_proposals(path: str | os.PathLike[str], image_ids: Sequence[int]) -> ProposalTable:
    """Read a proposal file of any of the formats above.

    Args:
        path: the file, or the folder of a region store.
        image_ids: images of the data set, in its order, which is that of a ``.pkl``.
    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown format or content; a box that is not finite; a pickle with other objects than
            arrays; no image in common with ``image_ids``.
    """
    source = Path(path)
    if source.is_dir():
        table = _from_store(source)
    else:
        require_file(source, 'proposal file')
        check_option(f'format of proposal file {source}', source.suffix, _READERS)
        try:
            table = _READERS[source.suffix](source, list(image_ids))
        except (ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
            if str(source) in str(error):
                raise
            reason = f'no {error}' if isinstance(error, KeyError) else str(error)
            raise ValueError(f'proposal file {source} cannot be read: {reason}') from error
    _check_table(table, image_ids)
    return table


def _table(source: Path, parts: dict[int, np.ndarray], is_complete: bool) -> ProposalTable:
    """Concatenate the arrays [n, 5] (xyxy, score) of the images."""
    counts = {image_id: len(part) for image_id, part in parts.items()}
    starts = np.concatenate([[0], np.cumsum(list(counts.values()), dtype=np.int64)]).tolist()
    joined = np.concatenate([np.zeros((0, 5), np.float32), *parts.values()])
    return ProposalTable(
        str(source),
        sha256_file(source),
        dict(zip(counts, starts)),
        counts,
        joined[:, :4],
        joined[:, 4],
        is_complete,
    )


def _from_json(source: Path, image_ids: list[int]) -> ProposalTable:
    results = json.loads(source.read_bytes())
    grouped: dict[int, list[list[float]]] = {}
    shapes: dict[int, list[Any]] = {}
    for item in results:
        x, y, width, height = item['bbox']
        row = [x, y, x + width, y + height, item.get('score', 1.0)]
        grouped.setdefault(int(item['image_id']), []).append(row)
        shapes.setdefault(int(item['image_id']), []).append(item.get('segmentation'))
    parts = {image_id: np.array(rows, dtype=np.float32) for image_id, rows in grouped.items()}
    table = _table(source, parts, is_complete=False)
    table.has_scores = all('score' in item for item in results)
    joined = [shape for per_image in shapes.values() for shape in per_image]
    table.segmentations = joined if joined and all(joined) else None
    return table


def _from_npz(source: Path, image_ids: list[int]) -> ProposalTable:
    with np.load(source, allow_pickle=False) as arrays:
        ids, counts = arrays['image_ids'].tolist(), arrays['counts'].tolist()
        boxes = arrays['boxes'].astype(np.float32).reshape(-1, 4)
        scores = arrays['scores'] if 'scores' in arrays else np.ones(len(boxes))
    if len(ids) != len(counts) or sum(counts) != len(boxes) or len(scores) != len(boxes):
        raise ValueError(
            f'{len(ids)} image_ids, {len(counts)} counts with the sum {sum(counts)}, {len(boxes)} boxes and '
            f'{len(scores)} scores do not fit together'
        )
    joined = np.concatenate([boxes, np.asarray(scores, np.float32).reshape(-1, 1)], axis=1)
    parts = np.split(joined, np.cumsum(counts)[:-1]) if counts else []
    return _table(source, dict(zip(ids, parts)), is_complete=True)


def _from_pickle(source: Path, image_ids: list[int]) -> ProposalTable:
    content = read_array_pickle(io.BytesIO(source.read_bytes()), f'proposal file {source}')
    if not isinstance(content, list) or len(content) != len(image_ids):
        found = f'{len(content)} entries' if isinstance(content, list) else type(content).__name__
        raise ValueError(f'expected a list of {len(image_ids)} arrays, one per image, got {found}')
    parts = {}
    for image_id, array in zip(image_ids, content):
        rows = np.asarray(array)
        if rows.dtype.kind not in 'fiu' or rows.ndim != 2 or rows.shape[1] not in (4, 5):
            raise ValueError(
                f'image {image_id}: expected [n, 4] or [n, 5], got {rows.dtype} {list(rows.shape)}'
            )
        scores = rows[:, 4:] if rows.shape[1] == 5 else np.ones((len(rows), 1))
        parts[image_id] = np.concatenate([rows[:, :4], scores], axis=1).astype(np.float32)
    return _table(source, parts, is_complete=True)


def _from_store(source: Path) -> ProposalTable:
    store = RegionStore(source)
    parts = {}
    for image_id in store.image_ids.tolist():
        rows = store.read(image_id)  # views of the shard file; the copy lets it be closed
        parts[image_id] = np.concatenate([rows.boxes, rows.scores[:, None]], axis=1)
    table = _table(source / 'manifest.json', parts, is_complete=True)
    table.source = str(source)
    return table


_READERS = {'.json': _from_json, '.npz': _from_npz, '.pkl': _from_pickle}


def _check_table(table: ProposalTable, image_ids: Sequence[int]) -> None:
    bad = ~(np.isfinite(table.boxes).all(axis=1) & np.isfinite(table.scores))
    if bad.any():
        row = int(bad.nonzero()[0][0])
        image_id = next(i for i, first in table.first_row.items() if first <= row < first + table.counts[i])
        raise ValueError(
            f'proposal file {table.source}: image {image_id} has the box {table.boxes[row].tolist()}, '
            f'score {table.scores[row]}'
        )
    if len(image_ids) and not any(image_id in table.counts for image_id in image_ids):
        raise ValueError(f'proposal file {table.source} has no proposals for any image of the data set')
