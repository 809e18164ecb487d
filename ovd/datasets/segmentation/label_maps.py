"""Label maps: files of raw ids, what each id stands for, and instances painted into a map.

A raw id is what a file stores; a label is what the model learns: 0 .. K - 1 for the classes of the
vocabulary, K for background where it is a class, ``IGNORE_INDEX`` for pixels that count nowhere. Labels are
int16, or int32 beyond 32,766, so that no class index is special.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from ...files import atomic_path
from ..images import open_image

IGNORE_INDEX = -1
HIGHEST_ID = 65535  # a PNG holds at most 16 bits a pixel

_ONE_CHANNEL = ('1', 'L', 'P', 'I')  # modes of Pillow; 16 bits are I;16 and its kin


def read_label_map(path: str | os.PathLike[str], to_grey: bool = False) -> np.ndarray:
    """Read a file of ids: grey, palette (the index counts, not the colour) or 16-bit grey.

    Args:
        to_grey: take the brightness of a colour file, as masks of black and white are stored at times.
    Returns:
        bool, uint8, uint16 or int32 [H, W], as stored.
    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty, truncated or undecodable file, or one of several channels; the message names it.
    """
    with open_image(path, 'label map') as image:
        mode = image.mode
        if to_grey or mode.split(';')[0] in _ONE_CHANNEL:
            return np.array(image.convert('L') if to_grey else image)
    raise ValueError(f'label map {path} has pixels of mode {mode}, expected one channel of whole numbers')


def write_label_map(path: str | os.PathLike[str], labels: np.ndarray, num_labels: int) -> None:
    """Write labels [H, W] as a PNG of 8 bits, or of 16 from 256 labels on; ``IGNORE_INDEX`` is the top value.

    Args:
        labels: whole numbers from ``IGNORE_INDEX`` to ``num_labels - 1``.
    """
    kind = np.uint8 if num_labels <= np.iinfo(np.uint8).max else np.uint16
    top = np.iinfo(kind).max
    if num_labels > top:
        raise ValueError(f'{num_labels} labels do not fit into a PNG of 16 bits')
    stored = np.where(labels == IGNORE_INDEX, top, labels).astype(kind)
    with atomic_path(path) as temporary:
        Image.fromarray(stored).save(temporary, format='PNG')


class LabelTable:
    """The label of every raw id of a data set.

    Args:
        labels: label, or ``IGNORE_INDEX``, of each raw id.
        refused: raw ids that must not occur, and the reason.
    """

    def __init__(self, labels: Mapping[int, int], refused: Mapping[int, str] | None = None) -> None:
        self.labels = dict(labels)
        self.refused = dict(refused or {})
        for raw in (*self.labels, *self.refused):
            if not isinstance(raw, int) or not 0 <= raw <= HIGHEST_ID:
                raise ValueError(f'a raw id is a whole number from 0 to {HIGHEST_ID}, got {raw!r}')
        highest = max(self.labels.values(), default=IGNORE_INDEX)
        kind = np.int16 if highest < np.iinfo(np.int16).max else np.int32
        self._unknown = np.iinfo(kind).min
        self._column = np.full(max(self.labels, default=-1) + 1, self._unknown, kind)
        for raw, label in self.labels.items():
            if raw not in self.refused:
                self._column[raw] = label

    def apply(self, raw: np.ndarray, source: str) -> np.ndarray:
        """Labels [H, W], int16 or int32, of raw ids [H, W].

        Args:
            source: where the ids come from, for messages.
        Raises:
            ValueError: an id that is unknown or refused; the message names it, the file and the known ones.
        """
        if raw.dtype == bool:
            raw = raw.astype(np.uint8)
        if raw.size and (raw.max() >= len(self._column) or raw.min() < 0):
            raise ValueError(self._complaint(raw, source))
        labels = self._column[raw]
        if (labels == self._unknown).any():
            raise ValueError(self._complaint(raw, source))
        return labels

    def _complaint(self, raw: np.ndarray, source: str) -> str:
        ids, counts = np.unique(raw, return_counts=True)
        wrong = [
            (int(found), int(count))
            for found, count in zip(ids, counts)
            if found in self.refused or found not in self.labels
        ]
        found, count = wrong[0]
        message = f'label map {source} holds id {found} ({count} pixels)'
        if found in self.refused:
            return f'{message}: {self.refused[found]}'
        others = f', and {len(wrong) - 1} more unknown ids' if len(wrong) > 1 else ''
        return f'{message}{others}; this data set has {_ranges(self.labels)}'


def _ranges(ids: Iterable[int]) -> str:
    """``{0, 1, 2, 255}`` -> '0..2 and 255'."""
    runs: list[list[int]] = []
    for value in sorted(ids):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    words = [str(first) if first == last else f'{first}..{last}' for first, last in runs]
    words = words if len(words) <= 12 else [*words[:6], '...', *words[-5:]]
    return ' and '.join(filter(None, [', '.join(words[:-1]), *words[-1:]])) or 'no ids'


def paint_instances(
    segments: Sequence[tuple[int, Any]], height: int, width: int, ground: int, source: str
) -> np.ndarray:
    """Paint masks into one map, larger ones first, so that a small object on a large one is seen.

    Args:
        segments: (raw id, COCO segmentation) per instance: polygons in pixels, or a run-length code. Of two
            masks of equal area the later one is on top.
        ground: raw id of pixels under no mask.
        source: the picture, for messages.
    Returns:
        raw ids, int32 [H, W].
    """
    painted = np.full((height, width), ground, np.int32)
    masks = [(raw, decode_mask(segment, height, width, source)) for raw, segment in segments]
    for raw, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
        painted[mask] = raw
    return painted


def decode_mask(segmentation: Any, height: int, width: int, source: str) -> np.ndarray:
    """Mask, bool [H, W], of a COCO segmentation.

    Raises:
        ValueError: neither polygons of at least three points nor a run-length code of this size.
    """
    if isinstance(segmentation, Mapping):
        size = list(segmentation.get('size', ()))
        if size != [height, width] or 'counts' not in segmentation:
            raise ValueError(
                f'{source}: the run-length code of a mask has size {size}, expected {[height, width]}'
            )
        if isinstance(segmentation['counts'], list):
            segmentation = mask_utils.frPyObjects(dict(segmentation), height, width)
        return np.asarray(mask_utils.decode(segmentation)).astype(bool)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f'{source}: a mask is {segmentation!r}, expected polygons or a run-length code')
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f'{source}: a polygon is {polygon!r}, expected at least three points x, y')
    codes = mask_utils.frPyObjects(segmentation, height, width)
    return np.asarray(mask_utils.decode(mask_utils.merge(codes))).astype(bool)
