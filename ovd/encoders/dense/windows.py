"""A map from a tower that gives one vector an image: overlapping windows, each through the whole tower.

Windows lie on a product grid, so their mean over every cell is two small matrix products, one along each
axis. Reading order: Windows (what a configuration names), window_starts, cell_weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PROFILES = ('flat', 'triangle')


class Windows:
    """Overlapping windows whose embeddings are averaged where they overlap.

    Args:
        stride: distance of windows, pixels of the input, and side of a cell of the map.
        sizes: sides of the windows, pixels of the input; several are averaged with equal weights. By default
            the tower's own input size.
        profile: how much a window says about a cell: ``flat``, the same everywhere, or ``triangle``, in
            proportion to the distance of the cell from the window's sides along each axis.
        batch_size: windows that go through the tower together; affects memory only.
    """

    def __init__(
        self,
        stride: int,
        sizes: int | Sequence[int] | None = None,
        profile: str = 'flat',
        batch_size: int = 64,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f'windows: profile {profile!r} is none of {PROFILES}')
        self.stride, self.profile, self.batch_size = stride, profile, batch_size
        self.sizes = None if sizes is None else [sizes] if isinstance(sizes, int) else list(sizes)
        for size in self.sizes or []:
            if not 1 <= stride <= size:
                raise ValueError(f'windows: stride {stride} leaves gaps between windows of {size} pixels')
        if stride < 1 or batch_size < 1:
            raise ValueError(
                f'windows: stride and batch_size must be positive, got {stride} and {batch_size}'
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, embed: Callable[[Tensor], Tensor], input_size: int) -> Tensor:
        """Mean embedding of the windows on each cell.

        Args:
            images: [B, 3, H, W], normalised; 0 is what lies beyond an image that is smaller than a window.
            embed: squares [N, 3, input_size, input_size] -> [N, D], unit length.
            input_size: side of what ``embed`` takes; windows of other sizes are resized.
        Returns:
            [B, D, ceil(H / stride), ceil(W / stride)], means of unit vectors.
        """
        height, width = images.shape[2:]
        cells = (-(-height // self.stride), -(-width // self.stride))
        sizes = [input_size] if self.sizes is None else self.sizes
        total: Tensor | None = None
        for size in sizes:
            padded = F.pad(images, (0, max(0, size - width), 0, max(0, size - height)))
            tops, lefts = (window_starts(side, size, self.stride) for side in padded.shape[2:])
            vectors = self._embed(padded, embed, size, tops, lefts, input_size)
            rows, columns = (
                cell_weights(starts, size, self.stride, count, side, self.profile).to(vectors)
                for starts, count, side in ((tops, cells[0], height), (lefts, cells[1], width))
            )
            found = torch.einsum('yi,bijd,xj->bdyx', rows, vectors, columns)
            total = found if total is None else total + found
        assert total is not None
        return total / len(sizes)

    def _embed(
        self,
        images: Tensor,
        embed: Callable[[Tensor], Tensor],
        size: int,
        tops: list[int],
        lefts: list[int],
        input_size: int,
    ) -> Tensor:
        """Vectors [B, rows, columns, D] of the windows at all pairs of ``tops`` and ``lefts``."""
        corners = [(index, top, left) for index in range(len(images)) for top in tops for left in lefts]
        vectors = []
        for start in range(0, len(corners), self.batch_size):
            squares = torch.stack(
                [
                    images[index, :, top : top + size, left : left + size]
                    for index, top, left in corners[start : start + self.batch_size]
                ]
            )
            if size != input_size:
                squares = F.interpolate(
                    squares,
                    (input_size, input_size),
                    mode='bilinear',
                    align_corners=False,
                    antialias=size > input_size,
                )
            vectors.append(embed(squares))
        return torch.cat(vectors).unflatten(0, (len(images), len(tops), len(lefts)))


def window_starts(side: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows along a side; one that would leave the image is shifted back inside."""
    count = -(-(side - size) // stride) + 1
    return [min(stride * index, side - size) for index in range(count)]


def cell_weights(
    starts: Sequence[int], size: int, stride: int, cells: int, side: int, profile: str
) -> Tensor:
    """How much each window contributes to each cell along an axis, float64 [cells, windows].

    The weights of a pixel add up to 1, and a cell is the mean of its pixels inside the image.
    """
    pixels = torch.arange(side, dtype=torch.float64)[:, None] + 0.5
    first = torch.tensor(starts, dtype=torch.float64)
    reach = torch.minimum(pixels - first, first + size - pixels)
    weights = (reach > 0).double() if profile == 'flat' else reach.clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    padded = torch.cat([weights, weights.new_zeros(cells * stride - side, len(starts))])
    counts = torch.tensor([min(stride, side - stride * cell) for cell in range(cells)])
    return padded.unflatten(0, (cells, stride)).sum(1) / counts[:, None]
