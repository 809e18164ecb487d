"""Label maps: reading and writing files, mapping raw ids to labels, painting instances.

Raw ids are stored in files. Labels are 0 .. K - 1 for the classes of the vocabulary, K for background if it
is a class, and ``IGNORE_INDEX``. Labels are int16, or int32 beyond 32,766, so more than 255 classes are
supported.
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
    """Read a file of ids: grey, palette (read as indices) or 16-bit grey.

    Args:
        to_grey: convert colour files to grey, for black and white masks stored as RGB.
    Returns:
        bool, uint8, uint16 or int32 [H, W], as stored.
    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or several channels; the message names it.
    """
    with open_image(path, 'label map') as image:
        mode = image.mode
        if to_grey or mode.split(';')[0] in _ONE_CHANNEL:
            return np.array(image.convert('L') if to_grey else image)
    raise ValueError(f'label map {path} has mode {mode}, expected one channel of integers')


def write_label_map(path: str | os.PathLike[str], labels: np.ndarray, num_labels: int) -> None:
    """Write labels [H, W] as an 8-bit PNG, 16-bit from 256 labels on; ``IGNORE_INDEX`` is the maximum.

    Args:
        labels: integers from ``IGNORE_INDEX`` to ``num_labels - 1``.
    """
    kind = np.uint8 if num_labels <= np.iinfo(np.uint8).max else np.uint16
    top = np.iinfo(kind).max
    stored = np.where(labels == IGNORE_INDEX, top, labels).astype(kind)
    with atomic_path(path) as temporary:
        Image.fromarray(stored).save(temporary, format='PNG')


class LabelTable:
    """Lookup table from raw ids to labels.

    Args:
        labels: label, or ``IGNORE_INDEX``, of each raw id.
        refused: raw ids that are an error, and the reason.
    """

    def __init__(self, labels: Mapping[int, int], refused: Mapping[int, str] | None = None) -> None:
        self.labels = dict(labels)
        self.refused = dict(refused or {})
        for raw in (*self.labels, *self.refused):
            if not isinstance(raw, int) or not 0 <= raw <= HIGHEST_ID:
                raise ValueError(f'raw ids are integers from 0 to {HIGHEST_ID}, got {raw!r}')
        highest = max(self.labels.values(), default=IGNORE_INDEX)
        kind = np.int16 if highest < np.iinfo(np.int16).max else np.int32
        self._unknown = np.iinfo(kind).min
        self._column = np.full(max(self.labels, default=-1) + 1, self._unknown, kind)
        for raw, label in self.labels.items():
            if raw not in self.refused:
                self._column[raw] = label

    def apply(self, raw: np.ndarray, source: str) -> np.ndarray:
        """Map raw ids [H, W] to labels [H, W], int16 or int32.

        Args:
            source: the file, for messages.
        Raises:
            ValueError: an unknown or refused id; the message names it, the file and the known ids.
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
        message = f'label map {source} has id {found} ({count} pixels)'
        if found in self.refused:
            return f'{message}: {self.refused[found]}'
        others = f', and {len(wrong) - 1} more unknown ids' if len(wrong) > 1 else ''
        return f'{message}{others}; known ids are {_ranges(self.labels)}'


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
    """Paint masks into one map, from large to small.

    Args:
        segments: (raw id, COCO segmentation) per instance: polygons in pixels, or RLE. Of two masks of equal
            area the later one is on top.
        ground: raw id of pixels under no mask.
        source: the image, for messages.
    Returns:
        raw ids, int32 [H, W].
    """
    painted = np.full((height, width), ground, np.int32)
    masks = [(raw, decode_mask(segment, height, width, source)) for raw, segment in segments]
    for raw, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
        painted[mask] = raw
    return painted


def decode_mask(segmentation: Any, height: int, width: int, source: str) -> np.ndarray:
    """Decode a COCO segmentation to a mask, bool [H, W].

    Raises:
        ValueError: neither polygons of at least three points nor RLE of this size.
    """
    if isinstance(segmentation, Mapping):
        size = list(segmentation.get('size', ()))
        if size != [height, width] or 'counts' not in segmentation:
            raise ValueError(f'{source}: mask has RLE of size {size}, expected {[height, width]}')
        if isinstance(segmentation['counts'], list):
            segmentation = mask_utils.frPyObjects(dict(segmentation), height, width)
        return np.asarray(mask_utils.decode(segmentation)).astype(bool)
    for polygon in segmentation or [segmentation]:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f'{source}: mask has polygon {polygon!r}, expected three or more points x, y')
    codes = mask_utils.frPyObjects(segmentation, height, width)
    return np.asarray(mask_utils.decode(mask_utils.merge(codes))).astype(bool)
