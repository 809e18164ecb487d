"""Large pictures in overlapping tiles, whose answers are joined into one.

Objects: every tile and the whole picture are asked. A box that touches an edge of its tile inside the picture
is cut there and dropped: an object two pixels smaller than the overlap is whole in another tile, and larger
ones are left to the whole picture. What two tiles both see is reduced to the better box by suppression within
a name. Every box that remains is one that the model gave, moved by whole pixels; sahi's default merge, in
contrast, grows boxes over what they overlap.

Maps: each pixel has the label of the tile in which it lies deepest.

Reading order: tile_windows, predict_tiled.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..predictions import Prediction, Segmentation, non_maximum

Window = tuple[int, int, int, int]

_EDGE = 1.0  # pixels from the edge of a tile at which a box counts as cut


def tile_windows(size: tuple[int, int], tile: int, overlap: float) -> list[Window]:
    """Squares that cover a picture, x1, y1, x2, y2; the last of a row or column overlaps more.

    Args:
        size: (height, width) in pixels.
        tile: side of a square; a shorter side of the picture is taken whole.
        overlap: share of ``tile`` that neighbours have in common at least, in [0, 1).
    Raises:
        ValueError: a tile of no pixel, or an overlap out of range.
    """
    if tile < 1 or not 0 <= overlap < 1:
        raise ValueError(f'expected a tile of at least one pixel and 0 <= overlap < 1, got {tile}, {overlap}')
    step = max(1, int(tile * (1 - overlap)))
    starts = []
    for length in size:
        last = max(0, length - tile)
        starts.append([*range(0, last, step), last])
    height, width = size
    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in starts[0] for x in starts[1]]


def predict_tiled(
    predict: Callable[[list[np.ndarray]], Sequence[Any]],
    image: np.ndarray,
    tile: int,
    overlap: float = 0.2,
    nms_iou: float = 0.5,
) -> Any:
    """The answer on a picture, from the answers on its tiles.

    Args:
        predict: answers images, such as ``Predictor.predict`` with its options bound.
        image: uint8 [H, W, 3], RGB.
        tile, overlap: see ``tile_windows``.
        nms_iou: of two boxes of one name that overlap more, the better is kept.
    Returns:
        an answer of the kind that ``predict`` gives, on the whole picture.
    """
    size = (image.shape[0], image.shape[1])
    windows = tile_windows(size, tile, overlap)
    if len(windows) == 1:
        return predict([image])[0]
    answers = predict([np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in windows])
    if isinstance(answers[0], Segmentation):
        return _join_maps(answers, windows, size)
    whole = predict([image])[0]
    kept = [_uncut(answer, window, size) for answer, window in zip(answers, windows)]
    parts = [(whole, (0, 0, size[1], size[0])), *zip(kept, windows)]
    boxes = np.concatenate([part.boxes + np.array(window[:2] * 2, np.float32) for part, window in parts])
    scores = np.concatenate([part.scores for part, _ in parts])
    labels = np.concatenate([part.labels for part, _ in parts])
    best = non_maximum(boxes, scores, labels, nms_iou)
    origins = [(number, place) for number, (part, _) in enumerate(parts) for place in range(len(part))]
    masks = None
    if whole.masks is not None:
        masks = np.zeros((len(best), *size), bool)
        for row, index in enumerate(best):
            number, place = origins[index]
            part, (x1, y1, x2, y2) = parts[number]
            masks[row, y1:y2, x1:x2] = part.masks[place]
    names = [name for part, _ in parts for name in part.names]
    return replace(
        whole,
        runners_up=(),
        boxes=boxes[best],
        scores=scores[best],
        labels=labels[best],
        names=tuple(names[index] for index in best),
        masks=masks,
    )


def _uncut(found: Prediction, window: Window, size: tuple[int, int]) -> Prediction:
    """The instances of a tile that do not touch its edges inside the picture."""
    x1, y1, x2, y2 = window
    height, width = size
    boxes = found.boxes
    cut = np.zeros(len(found), bool)
    for inside, touches in (
        (x1 > 0, boxes[:, 0] <= _EDGE),
        (y1 > 0, boxes[:, 1] <= _EDGE),
        (x2 < width, boxes[:, 2] >= x2 - x1 - _EDGE),
        (y2 < height, boxes[:, 3] >= y2 - y1 - _EDGE),
    ):
        if inside:
            cut |= touches
    return found.keep(np.flatnonzero(~cut))


def _join_maps(answers: Sequence[Segmentation], windows: Sequence[Window], size: tuple[int, int]) -> Any:
    height, width = size
    labels = np.full(size, -1, np.int64)
    depth = np.full(size, -np.inf)
    for answer, (x1, y1, x2, y2) in zip(answers, windows):
        # Distance to the nearest edge inside the picture; the picture's own edges cut nothing.
        rows, columns = np.arange(y1, y2), np.arange(x1, x2)
        across = np.minimum(
            columns - x1 if x1 > 0 else np.full(x2 - x1, np.inf),
            x2 - 1 - columns if x2 < width else np.full(x2 - x1, np.inf),
        )
        down = np.minimum(
            rows - y1 if y1 > 0 else np.full(y2 - y1, np.inf),
            y2 - 1 - rows if y2 < height else np.full(y2 - y1, np.inf),
        )
        inside = np.minimum(down[:, None], across[None])
        deeper = inside > depth[y1:y2, x1:x2]
        labels[y1:y2, x1:x2][deeper] = answer.labels[deeper]
        depth[y1:y2, x1:x2][deeper] = inside[deeper]
    return replace(answers[0], labels=labels)
