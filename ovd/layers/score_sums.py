"""Sums of score maps: mirror images, overlapping windows, scales.

Reading order: SummedScores, WindowedScores (deferred), ScoreSum (a sum that grows, in memory or deferred).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .score_maps import ScoreMaps, TensorScores, chunks


class SummedScores(ScoreMaps):
    """Sum of maps of one grid, added in their order.

    Args:
        sources: maps with equal batches, grids and classes.
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
    """Windows laid on a grid, summed in their order where they overlap.

    Args:
        windows: (maps, top, left) of each window, inside the grid; equal batches and classes.
        size: (height, width) of the grid.
        divide: divide each pixel by the number of windows on it; then every pixel needs one.
    """

    def __init__(
        self, windows: Sequence[tuple[ScoreMaps, int, int]], size: tuple[int, int], divide: bool = True
    ) -> None:
        _check_alike([scores for scores, _, _ in windows], grid=False)
        for scores, top, left in windows:
            _check_inside(scores, top, left, size)
        self._like(windows[0][0], (int(size[0]), int(size[1])))
        self.windows, self.divide = list(windows), divide
        places = [(top, left, scores.height, scores.width) for scores, top, left in windows]
        self._counts = count_windows(places, self.size) if divide else None

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


def count_windows(places: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """Number of windows (top, left, height, width) on each pixel, int64 [H, W].

    Raises:
        ValueError: a pixel that no window covers.
    """
    counts = torch.zeros(size, dtype=torch.int64)
    for top, left, height, width in places:
        counts[top : top + height, left : left + width] += 1
    if counts.min() == 0:
        row, column = (counts == 0).nonzero()[0].tolist()
        raise ValueError(f'no window covers row {row}, column {column} of the {tuple(size)} grid')
    return counts


class ScoreSum:
    """A sum of maps that come one after the other, each with its place on a grid.

    A sum that fits in ``eager_elements`` is kept as a tensor, and what the maps were made of can be freed. A
    larger one keeps the maps and defers the adding, unless they would take more than the sum. The scores are
    the same.

    Args:
        size: (height, width) of the grid.
        divide: divide each pixel by the number of maps on it.
        eager_elements: sum that is kept as a tensor in any case; 0 always defers.
        max_elements: see ``argmax_labels``.
        parts: how many maps will come.
    """

    def __init__(
        self, size: tuple[int, int], divide: bool, eager_elements: int, max_elements: int, parts: int = 1
    ) -> None:
        self.size, self.divide = size, divide
        self.eager_elements, self.max_elements, self.parts = eager_elements, max_elements, parts
        self._is_eager: bool | None = None
        self._total: Tensor | None = None
        self._places: list[tuple[int, int, int, int]] = []
        self._deferred: list[tuple[ScoreMaps, int, int]] = []

    @torch.no_grad()
    def add(self, scores: ScoreMaps, top: int = 0, left: int = 0) -> None:
        """Add maps whose upper left corner lies at (top, left)."""
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
        self._places.append((top, left, scores.height, scores.width))

    def _fits(self, scores: ScoreMaps) -> bool:
        """Whether the sum is kept as a tensor, by the first of its maps."""
        elements = scores.batch * scores.channels * self.size[0] * self.size[1]
        deferred = self.parts * scores.kept_elements if self.eager_elements else 0
        return elements <= max(self.eager_elements, deferred)

    def scores(self) -> ScoreMaps:
        """The sum of what was added; nothing can be added afterwards."""
        if self._total is None:
            return WindowedScores(self._deferred, self.size, self.divide)
        if self.divide:
            self._total.div_(count_windows(self._places, self.size).to(self._total))
        return TensorScores(self._total)


def _check_inside(scores: ScoreMaps, top: int, left: int, size: tuple[int, int]) -> None:
    """A window must lie on the grid."""
    if min(top, left) < 0 or top + scores.height > size[0] or left + scores.width > size[1]:
        raise ValueError(f'a window of {scores.size} at ({top}, {left}) leaves the grid of {tuple(size)}')


def _check_alike(sources: Sequence[ScoreMaps], grid: bool = True) -> None:
    """Maps that are put together must agree in batch and classes, and in their grid."""
    if not sources:
        raise ValueError('no score maps to put together')

    def key(source: ScoreMaps) -> tuple[int, ...]:
        return (source.batch, source.channels, *(source.size if grid else ()))

    for source in sources[1:]:
        if key(source) != key(sources[0]):
            raise ValueError(f'score maps of {source.shape} do not go with those of {sources[0].shape}')
