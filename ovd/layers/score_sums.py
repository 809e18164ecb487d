"""Sums of score maps: flips, overlapping windows, scales.

Reading order: SummedScores, WindowedScores (lazy), ScoreSum (running sum, in memory or lazy).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .score_maps import ScoreMaps, TensorScores, chunks


class SummedScores(ScoreMaps):
    """Sum of maps of one size, added in order.

    Args:
        sources: maps of equal batch, size and classes.
    """

    def __init__(self, sources: Sequence[ScoreMaps]) -> None:
        _check_alike(sources)
        self._like(sources[0])
        self.sources = list(sources)

    @property
    def kept_elements(self) -> int:
        return sum(source.kept_elements for source in self.sources)

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        total = self.sources[0].rows(start, stop, channels).clone()
        for source in self.sources[1:]:
            total.add_(source.rows(start, stop, channels))
        return total

    def images(self, start: int, stop: int) -> ScoreMaps:
        return SummedScores([source.images(start, stop) for source in self.sources])


class WindowedScores(ScoreMaps):
    """Windows summed on a grid, in order.

    Args:
        windows: (maps, top, left) of each window, inside the grid; of equal batch and classes.
        size: (height, width) of the grid.
        divide: divide each pixel by its number of windows, of which it then needs at least one.
    """

    def __init__(
        self, windows: Sequence[tuple[ScoreMaps, int, int]], size: tuple[int, int], divide: bool = True
    ) -> None:
        _check_alike([scores for scores, _, _ in windows], grid=False)
        for scores, top, left in windows:
            _check_inside(scores, top, left, size)
        self._like(windows[0][0], (int(size[0]), int(size[1])))
        self.windows, self.divide = list(windows), divide
        boxes = [(top, left, scores.height, scores.width) for scores, top, left in windows]
        self._counts = count_windows(boxes, self.size) if divide else None

    @property
    def kept_elements(self) -> int:
        return sum(scores.kept_elements for scores, _, _ in self.windows)

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        first, last, _ = channels.indices(self.channels)
        shape = (self.batch, last - first, stop - start, self.width)
        total = torch.zeros(shape, device=self.device, dtype=self.dtype)
        for scores, top, left in self.windows:
            upper, lower = max(start, top), min(stop, top + scores.height)
            if upper < lower:
                strip = scores.rows(upper - top, lower - top, channels)
                total[:, :, upper - start : lower - start, left : left + scores.width] += strip
        return total if self._counts is None else total.div_(self._counts[start:stop].to(total))

    def images(self, start: int, stop: int) -> ScoreMaps:
        windows = [(scores.images(start, stop), top, left) for scores, top, left in self.windows]
        return WindowedScores(windows, self.size, self.divide)


def count_windows(boxes: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """Number of windows (top, left, height, width) on each pixel, int64 [H, W].

    Raises:
        ValueError: a pixel that no window covers.
    """
    counts = torch.zeros(size, dtype=torch.int64)
    for top, left, height, width in boxes:
        counts[top : top + height, left : left + width] += 1
    if counts.min() == 0:
        row, column = (counts == 0).nonzero()[0].tolist()
        raise ValueError(f'no window covers row {row}, column {column} of the {tuple(size)} grid')
    return counts


class ScoreSum:
    """Running sum of maps, each at its position on a grid.

    A sum of at most ``eager_elements`` is a tensor, so the memory behind the maps can be freed. A larger one
    keeps the maps and adds lazily, unless they would take more memory than the sum. Scores are the same.

    Args:
        size: (height, width) of the grid.
        divide: divide each pixel by its number of maps.
        eager_elements: size up to which the sum is always a tensor; 0: always lazy.
        max_elements: see ``argmax_labels``.
        parts: number of maps to be added.
    """

    def __init__(
        self, size: tuple[int, int], divide: bool, eager_elements: int, max_elements: int, parts: int = 1
    ) -> None:
        self.size, self.divide = size, divide
        self.eager_elements, self.max_elements, self.parts = eager_elements, max_elements, parts
        self._is_eager: bool | None = None
        self._total: Tensor | None = None
        self._boxes: list[tuple[int, int, int, int]] = []
        self._deferred: list[tuple[ScoreMaps, int, int]] = []

    @torch.no_grad()
    def add(self, scores: ScoreMaps, top: int = 0, left: int = 0) -> None:
        """Add maps with their upper left corner at (top, left)."""
        if self._is_eager is None:
            self._is_eager = self._fits(scores)
        if not self._is_eager:
            self._deferred.append((scores, top, left))
            return
        _check_inside(scores, top, left, self.size)
        if self._total is None:
            shape = (scores.batch, scores.channels, *self.size)
            self._total = torch.zeros(shape, dtype=scores.dtype, device=scores.device)
        window = self._total[:, :, top : top + scores.height, left : left + scores.width]
        for start, stop, channels in chunks(scores, self.max_elements):
            window[:, channels, start:stop] += scores.rows(start, stop, channels)
        self._boxes.append((top, left, scores.height, scores.width))

    def _fits(self, scores: ScoreMaps) -> bool:
        """Whether the sum is a tensor, judged by the first map."""
        elements = scores.batch * scores.channels * self.size[0] * self.size[1]
        deferred = self.parts * scores.kept_elements if self.eager_elements else 0
        return elements <= max(self.eager_elements, deferred)

    def scores(self) -> ScoreMaps:
        """Return the sum; call once, after the last ``add``."""
        if self._total is None:
            return WindowedScores(self._deferred, self.size, self.divide)
        if self.divide:
            self._total.div_(count_windows(self._boxes, self.size).to(self._total))
        return TensorScores(self._total)


def _check_inside(scores: ScoreMaps, top: int, left: int, size: tuple[int, int]) -> None:
    if min(top, left) < 0 or top + scores.height > size[0] or left + scores.width > size[1]:
        raise ValueError(f'window {scores.size} at ({top}, {left}) exceeds the grid {tuple(size)}')


def _check_alike(sources: Sequence[ScoreMaps], grid: bool = True) -> None:
    """Raise ValueError unless the maps agree in batch, classes and, if ``grid``, in size."""

    def key(source: ScoreMaps) -> tuple[int, ...]:
        return (source.batch, source.channels, *(source.size if grid else ()))

    for source in sources[1:]:
        if key(source) != key(sources[0]):
            raise ValueError(f'cannot add score maps of shapes {source.shape} and {sources[0].shape}')
