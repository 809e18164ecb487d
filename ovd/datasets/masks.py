"""Check the masks of annotation files before a library decodes them, and measure their areas."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as mask_utils

_MIN_COORDINATES = 6  # three points


def mask_problem(mask: Any, height: int, width: int) -> str | None:
    """Describe what is wrong with a mask of an image of this size; None if nothing.

    Args:
        mask: polygons [x1, y1, x2, y2, ...] in pixels, or a run-length encoding ``{'size', 'counts'}``.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Source: the COCO data format, https://cocodataset.org/#format-data.
    """
    if mask is None or mask == [] or mask == {}:
        return 'is missing'
    if isinstance(mask, Mapping):
        return _encoding_problem(mask, height, width)
    if not isinstance(mask, list):
        return f'is {type(mask).__name__}, expected polygons or a run-length encoding'
    return next(filter(None, (_polygon_problem(polygon, height, width) for polygon in mask)), None)


def _polygon_problem(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, list):
        return f'has a polygon of type {type(polygon).__name__}, expected a list of coordinates'
    if len(polygon) % 2 or len(polygon) < _MIN_COORDINATES:
        return f'has a polygon of {len(polygon)} coordinates, expected an even number from 6'
    for values, size in ((polygon[::2], width), (polygon[1::2], height)):
        for value in values:
            # Filling takes time and memory in proportion to the coordinates.
            if not is_number(value) or not -size <= value <= 2 * size:
                return f'has the coordinate {value!r} in an image of {width} x {height} pixels'
    return None


def _encoding_problem(mask: Mapping[str, Any], height: int, width: int) -> str | None:
    if mask.get('size') != [height, width]:
        return f'has the size {mask.get("size")}, its image [{height}, {width}]'
    counts = mask.get('counts')
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return 'has damaged counts'
    if sum(counts) != height * width:
        return f'has counts for {sum(counts)} pixels, its image has {height * width}'
    return None


def _decode_counts(text: str) -> list[int] | None:
    """Run lengths of a compressed encoding; None if it is damaged.

    A number is written as groups of five bits from the lowest, one character (48 + value) each, with bit 32
    set in all but the last, and the sign in bit 16 of the last. From the fourth run on, the difference from
    the run two before is stored.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts if shift == 0 else None


def area_of(annotation: Mapping[str, Any], height: int, width: int) -> float:
    """Area in square pixels: the ``area`` of an annotation, or else that of its mask, or of its box."""
    if annotation.get('area') is not None:
        return float(annotation['area'])
    mask = annotation.get('segmentation')
    if mask is not None and mask_problem(mask, height, width) is None:
        return mask_area(mask, height, width)
    return float(annotation['bbox'][2] * annotation['bbox'][3])


def mask_area(mask: Sequence[Any] | Mapping[str, Any], height: int, width: int) -> float:
    """Number of pixels of a valid mask."""
    if isinstance(mask, Mapping) and isinstance(mask['counts'], str):
        return float(mask_utils.area(dict(mask)))
    if isinstance(mask, Mapping):
        return float(sum(mask['counts'][1::2]))
    return float(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects(mask, height, width))))


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
