"""Lazy score maps: scores of every pixel for every class, computed on demand.

A map of thousands of classes at image size does not fit in memory. A ``ScoreMaps`` computes any strip of rows
for any range of classes instead; resizing, cropping, flipping and overlapping windows are wrappers around
another ``ScoreMaps``. All of them work element by element, so a strip is bit-identical to the same rows of
the whole map.

Reading order: ScoreMaps, TensorScores (a tensor), ResizedScores (bilinear), the other wrappers of one map,
``argmax_labels`` and ``materialize``. Sums of maps are in score_sums.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ..options import check_option

_CHANNELS_AT_ONCE = 32  # chunks of fewer classes are slow: rows are split instead


class ScoreMaps(ABC):
    """Scores of B images for C classes on a grid of ``height`` x ``width``.

    Attributes:
        batch: B.
        channels: C: K classes, or K + 1 with background last.
        height, width: of the grid.
        device, dtype: of the tensors that ``rows`` returns.
    """

    batch: int
    channels: int
    height: int
    width: int
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        """Scores of the rows ``start`` to ``stop`` for a range of classes.

        Args:
            start, stop: 0 <= start < stop <= height.
            channels: a slice with step 1.
        Returns:
            [B, C', stop - start, width]; may share memory with the source, so it must not be modified.
        """

    def images(self, start: int, stop: int) -> 'ScoreMaps':
        """Maps of the images ``start`` to ``stop`` of the batch; computes no other image."""
        return self if (start, stop) == (0, self.batch) else _SomeImages(self, start, stop)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the whole map: (B, C, height, width)."""
        return self.batch, self.channels, self.height, self.width

    @property
    def kept_elements(self) -> int:
        """Number of elements held in memory; of a wrapper, those of its source."""
        source: ScoreMaps | None = getattr(self, 'source', None)
        return 0 if source is None else source.kept_elements

    def _like(self, source: 'ScoreMaps', size: tuple[int, int] | None = None) -> None:
        """Copy batch, channels, device and dtype of the source, and its size unless one is given."""
        self.batch, self.channels = source.batch, source.channels
        self.height, self.width = source.size if size is None else size
        self.device, self.dtype = source.device, source.dtype


class TensorScores(ScoreMaps):
    """A computed map.

    Args:
        scores: [B, C, h, w].
    """

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.batch, self.channels, self.height, self.width = scores.shape
        self.device, self.dtype = scores.device, scores.dtype

    @property
    def kept_elements(self) -> int:
        return self.scores.numel()

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        return self.scores[:, channels, start:stop]

    def images(self, start: int, stop: int) -> ScoreMaps:
        return TensorScores(self.scores[start:stop])


class _SomeImages(ScoreMaps):
    """Images ``start`` to ``stop`` of a source that always computes all of them."""

    def __init__(self, source: ScoreMaps, start: int, stop: int) -> None:
        self._like(source)
        self.source, self.start, self.batch = source, start, stop - start

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        return self.source.rows(start, stop, channels)[self.start : self.start + self.batch]

    def images(self, start: int, stop: int) -> ScoreMaps:
        return self.source.images(self.start + start, self.start + stop)


def resized(source: ScoreMaps, size: tuple[int, int], align_corners: bool) -> ScoreMaps:
    """Resize the source bilinearly; returns the source itself if it has that size."""
    return source if source.size == tuple(size) else ResizedScores(source, size, align_corners)


class ResizedScores(ScoreMaps):
    """Bilinear interpolation to another grid, as ``torch.nn.functional.interpolate`` of the whole map.

    Rows and columns are interpolated by their position in the whole grid, so strips join without a seam, also
    with ``align_corners``. Half precision is interpolated and returned in float32.

    Args:
        source: maps of any size.
        size: (height, width) of the result.
        align_corners: align the centres of the corner pixels instead of their outer corners.
    """

    def __init__(self, source: ScoreMaps, size: tuple[int, int], align_corners: bool) -> None:
        self._like(source, (int(size[0]), int(size[1])))
        self.source, self.align_corners = source, align_corners
        if self.dtype in (torch.float16, torch.bfloat16):
            self.dtype = torch.float32
        rows, columns = self._taps(source.height, self.height), self._taps(source.width, self.width)
        self._spans = torch.stack(rows[:2]).tolist()
        self._rows = [part.to(self.device) for part in rows]
        self._columns = [part.to(self.device) for part in columns]

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        first, last = self._spans[0][start], self._spans[1][stop - 1] + 1
        if self.height == self.source.height:
            first, last = start, stop
        strip = self.source.rows(first, last, channels).to(self.dtype)
        if self.width != self.source.width:
            strip = _mix(strip, 3, *self._columns)
        if self.height != self.source.height:
            upper, lower, weight = (part[start:stop] for part in self._rows)
            strip = _mix(strip, 2, upper - first, lower - first, weight)
        return strip

    def images(self, start: int, stop: int) -> ScoreMaps:
        return ResizedScores(self.source.images(start, stop), self.size, self.align_corners)

    def _taps(self, length: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each of ``wanted`` samples the two source indices around it, and the weight of the second.

        The step is rounded to the precision of the scores and each position is rounded once, as in torch's
        kernels; an exact step would drift visibly over hundreds of pixels.
        """
        step = (length - 1) / max(wanted - 1, 1) if self.align_corners else length / wanted
        exact = torch.tensor(step, dtype=self.dtype).double()
        positions = torch.arange(wanted, dtype=torch.float64)
        positions = positions * exact if self.align_corners else (positions + 0.5) * exact - 0.5
        positions = positions.to(self.dtype).clamp(min=0)
        before = positions.long().clamp(max=length - 1)
        weight = (positions - before).clamp(0, 1)
        return before, (before + 1).clamp(max=length - 1), weight


def _mix(strip: Tensor, axis: int, before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """Linear interpolation along an axis.

    Products and sum are separate operations: a fused multiply-add would round differently at strip borders.
    """
    weight = weight.view([-1 if dimension == axis else 1 for dimension in range(4)])
    mixed = strip.index_select(axis, before).mul_(1 - weight)
    return mixed.add_(strip.index_select(axis, after).mul_(weight))


class CutScores(ScoreMaps):
    """Cropped maps.

    Args:
        source: maps.
        size: (height, width) of the rectangle.
        top, left: its first row and column.
    """

    def __init__(self, source: ScoreMaps, size: tuple[int, int], top: int = 0, left: int = 0) -> None:
        if (
            min(*size, top + 1, left + 1) < 1
            or top + size[0] > source.height
            or left + size[1] > source.width
        ):
            raise ValueError(f'crop {tuple(size)} at ({top}, {left}) exceeds scores of {source.size}')
        self._like(source, (int(size[0]), int(size[1])))
        self.source, self.top, self.left = source, top, left

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        strip = self.source.rows(self.top + start, self.top + stop, channels)
        return strip[..., self.left : self.left + self.width]

    def images(self, start: int, stop: int) -> ScoreMaps:
        return CutScores(self.source.images(start, stop), self.size, self.top, self.left)


class FlippedScores(ScoreMaps):
    """Mirrored maps.

    Args:
        source: maps.
        direction: 'horizontal' (swaps left and right) or 'vertical'.
    """

    def __init__(self, source: ScoreMaps, direction: str = 'horizontal') -> None:
        check_option('direction', direction, ('horizontal', 'vertical'))
        self._like(source)
        self.source, self.direction = source, direction

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        if self.direction == 'horizontal':
            return self.source.rows(start, stop, channels).flip(3)
        return self.source.rows(self.height - stop, self.height - start, channels).flip(2)

    def images(self, start: int, stop: int) -> ScoreMaps:
        return FlippedScores(self.source.images(start, stop), self.direction)


class ChannelScores(ScoreMaps):
    """Maps of the first ``channels`` classes, for example without background.

    Args:
        source: maps.
        channels: C, number of classes to keep.
    """

    def __init__(self, source: ScoreMaps, channels: int) -> None:
        self._like(source)
        self.source, self.channels = source, channels

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        first, last, _ = channels.indices(self.channels)
        return self.source.rows(start, stop, slice(first, last))

    def images(self, start: int, stop: int) -> ScoreMaps:
        return ChannelScores(self.source.images(start, stop), self.channels)


@torch.no_grad()
def argmax_labels(scores: ScoreMaps, max_elements: int = 1 << 20) -> Tensor:
    """Best class of every pixel; ties go to the lowest index.

    Args:
        scores: maps of C classes.
        max_elements: scores held at once; working memory is a few times that for any C. Affects memory and
            time only.
    Returns:
        int64 [B, h, w].
    """
    labels = torch.empty((scores.batch, *scores.size), dtype=torch.int64, device=scores.device)
    best: Tensor | None = None
    for start, stop, channels in chunks(scores, max_elements):
        values, indices = scores.rows(start, stop, channels).max(dim=1)
        target = labels[:, start:stop]
        if channels.start == 0:
            best = values
            target.copy_(indices)
            continue
        assert best is not None
        better = (values > best) | (values.isnan() & ~best.isnan())
        target.copy_(torch.where(better, indices + channels.start, target))
        best = torch.where(better, values, best)
    return labels


@torch.no_grad()
def materialize(scores: ScoreMaps, max_elements: int = 1 << 20) -> Tensor:
    """Compute the whole map [B, C, h, w] chunk by chunk; shares no memory with the sources."""
    whole = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    for start, stop, channels in chunks(scores, max_elements):
        whole[:, channels, start:stop] = scores.rows(start, stop, channels)
    return whole


def chunks(scores: ScoreMaps, max_elements: int) -> Iterator[tuple[int, int, slice]]:
    """Row strips, and within each strip class ranges in ascending order, of at most ``max_elements`` scores.

    Classes are split first, since no source computes a row twice for that; rows only if chunks would have few
    classes. A chunk has at least one row of one class.
    """
    row = scores.batch * scores.width
    wanted = max(min(scores.channels, _CHANNELS_AT_ONCE), max_elements // (row * scores.height))
    depth = min(scores.channels, max(1, min(wanted, max_elements // row)))
    height = max(1, min(scores.height, max_elements // (row * depth)))
    for start in range(0, scores.height, height):
        for first in range(0, scores.channels, depth):
            last = min(first + depth, scores.channels)
            yield start, min(start + height, scores.height), slice(first, last)
