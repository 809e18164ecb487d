"""RoIAlign (average and maximum) and RoIPool, forward and backward.

Averages are computed by torchvision. The two maxima, over other samples than torchvision's, are implemented
here: one sample of every bin at a time, for all regions and channels at once.
"""

import torch
from torch import Tensor

from .precision import full_precision

_MAX_POOL = 0
_NO_SAMPLE = -10000.0  # mmcv's maximum of an empty region


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Sample every region on a regular grid, bilinearly, and reduce each bin to one value.

    Args:
        input: features [B, C, h, w].
        rois: [R, 5], image index and xyxy in pixels of the image that ``spatial_scale`` maps to the features.
        output: buffer [R, C, aligned_height, aligned_width].
        argmax_y, argmax_x: buffers of output's shape, for ``pool_mode`` 0: which sample of the bin was the
            maximum, -1 for none. (mmcv stores coordinates here, which half types cannot hold exactly.)
        sampling_ratio: samples per bin and axis; 0 takes one per feature cell.
        pool_mode: 0 maximum, 1 average.
        aligned: whether coordinates are shifted by half a cell, so that a cell's centre is at 0.5.
    """
    features = full_precision(input)
    regions = rois.to(features.dtype)
    size = (aligned_height, aligned_width)
    if pool_mode != _MAX_POOL:
        averages = torch.ops.torchvision.roi_align(
            features, regions, spatial_scale, *size, sampling_ratio, aligned
        )
        output.copy_(averages)
        return
    best = features.new_full(output.shape, _NO_SAMPLE)
    best_i, best_j = torch.full_like(best, -1), torch.full_like(best, -1)
    start, bins, count = _bins(regions, size, spatial_scale, sampling_ratio, aligned)
    rows, columns = (torch.arange(n, device=regions.device) for n in size)
    for i in range(_largest(count[:, 1])):
        y = _sample_at(rows, i, start[:, 1:], bins[:, 1:], count[:, 1:])
        for j in range(_largest(count[:, 0])):
            x = _sample_at(columns, j, start[:, :1], bins[:, :1], count[:, :1])
            value = _bilinear(features, regions[:, 0].long(), y, x)
            is_sampled = (i < count[:, 1]) & (j < count[:, 0])
            is_better = is_sampled[:, None, None, None] & (value > best)
            best = torch.where(is_better, value, best)
            best_i.masked_fill_(is_better, i)
            best_j.masked_fill_(is_better, j)
    output.copy_(best)
    argmax_y.copy_(best_i)
    argmax_x.copy_(best_j)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the features to ``grad_input``; arguments as in :func:`roi_align_forward`."""
    grad = full_precision(grad_output)
    if pool_mode != _MAX_POOL:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad,
                rois.to(grad.dtype),
                spatial_scale,
                aligned_height,
                aligned_width,
                *grad_input.shape,
                sampling_ratio,
                aligned,
            )
        )
        return
    height, width = grad_input.shape[-2:]
    size = (aligned_height, aligned_width)
    start, bins, count = (
        numbers[:, :, None, None, None]
        for numbers in _bins(rois.to(grad.dtype), size, spatial_scale, sampling_ratio, aligned)
    )
    rows, columns = (torch.arange(n, device=rois.device) for n in size)
    y = _sample_at(rows[:, None], full_precision(argmax_y), start[:, 1], bins[:, 1], count[:, 1])
    x = _sample_at(columns, full_precision(argmax_x), start[:, 0], bins[:, 0], count[:, 0])
    planes = _plane_index(rois, grad_input)
    grad = grad * (argmax_y >= 0)
    total = grad.new_zeros(grad_input.numel())
    for row, row_weight in _taps(y, height):
        for column, column_weight in _taps(x, width):
            index = planes * height * width + row * width + column
            total.index_add_(0, index.flatten(), (grad * row_weight * column_weight).flatten())
    grad_input.copy_(total.view_as(grad_input))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maximum over the feature cells that each bin of a region touches.

    A region covers the pixels x1..x2 inclusive; neighbouring bins may share cells. This is mmcv's rule;
    torchvision rounds the region's corners to cells first.

    Args:
        input: features [B, C, h, w].
        rois: [R, 5], image index and xyxy in image pixels.
        output: buffer [R, C, pooled_height, pooled_width]; 0 for a bin outside the features.
        argmax: int32 buffer of that shape: ``row * w + column`` of the maximum, -1 for none.
    """
    features = full_precision(input)
    images = rois[:, 0].long()
    height, width = features.shape[-2:]
    corners = rois[:, 1:].to(features.dtype)
    start, end = corners[:, :2] * spatial_scale, (corners[:, 2:] + 1) * spatial_scale
    is_region = (end > start).all(1)[:, None, None, None]
    left, right = _bin_cells(start[:, 0], end[:, 0], pooled_width, width)
    top, bottom = _bin_cells(start[:, 1], end[:, 1], pooled_height, height)
    best = features.new_full(output.shape, -torch.inf)
    best_cell = torch.full_like(argmax, -1)
    for down in range(_largest(bottom - top)):
        row = top + down
        for along in range(_largest(right - left)):
            column = left + along
            value = _cells(features, images, row.clamp(max=height - 1), column.clamp(max=width - 1))
            is_inside = (row < bottom)[:, None, :, None] & (column < right)[:, None, None, :]
            is_better = is_inside & is_region & (value > best)
            best = torch.where(is_better, value, best)
            cell = (row * width)[:, None, :, None] + column[:, None, None, :]
            best_cell = torch.where(is_better, cell.to(best_cell.dtype), best_cell)
    output.copy_(best.masked_fill(best_cell < 0, 0))
    argmax.copy_(best_cell)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of the features to ``grad_input``; arguments as in :func:`roi_pool_forward`."""
    grad = full_precision(grad_output)
    height, width = grad_input.shape[-2:]
    is_pooled = argmax >= 0
    index = _plane_index(rois, grad_input) * height * width + argmax.clamp(min=0)
    total = grad.new_zeros(grad_input.numel())
    total.index_add_(0, index.flatten(), (grad * is_pooled).flatten())
    grad_input.copy_(total.view_as(grad_input))


def _bins(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Start of each region, size of its bins, samples per bin: each [R, 2], (x, y), in feature cells."""
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    bins = extent / extent.new_tensor(size[::-1])
    count = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    return start, bins, count


def _sample_at(index: Tensor, sample: Tensor | int, start: Tensor, size: Tensor, count: Tensor) -> Tensor:
    """Coordinate of a sample of bin ``index`` along one axis; the samples divide the bin evenly."""
    return start + size * index + (sample + 0.5) * size / count.clamp(min=1)


def _bin_cells(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First cell and end (exclusive) of each bin between ``start`` and ``end`` [R]: two int64 [R, bins]."""
    index = torch.arange(bins, device=start.device, dtype=start.dtype)
    step = ((end - start) / bins)[:, None]
    first = (index * step + start[:, None]).floor().clamp(0, size)
    last = ((index + 1) * step + start[:, None]).ceil().clamp(0, size)
    return first.long(), last.long()


def _bilinear(features: Tensor, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Features at rows y [R, P] and columns x [R, Q] of the given images [R], interpolated: [R, C, P, Q]."""
    value: Tensor | float = 0.0
    for row, row_weight in _taps(y, features.shape[-2]):
        for column, column_weight in _taps(x, features.shape[-1]):
            weight = row_weight[:, None, :, None] * column_weight[:, None, None, :]
            value = value + _cells(features, images, row, column) * weight
    return torch.as_tensor(value)


def _cells(features: Tensor, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Features at the cells row [R, P] x column [R, Q] of the given images [R]: [R, C, P, Q]."""
    cells = features.permute(0, 2, 3, 1)[images[:, None, None], row[:, :, None], column[:, None, :]]
    return cells.permute(0, 3, 1, 2)


def _taps(coordinate: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two cells along an axis that a coordinate lies between, with their weights.

    Up to one cell beyond the border the border's cell is repeated; further out both weights are zero.
    """
    is_near = (coordinate >= -1) & (coordinate <= size)
    inside = coordinate.clamp(0, size - 1)
    low = inside.floor()
    high_weight = inside - low
    cell = low.long()
    return [(cell, (1 - high_weight) * is_near), ((cell + 1).clamp(max=size - 1), high_weight * is_near)]


def _plane_index(rois: Tensor, features: Tensor) -> Tensor:
    """``image * C + channel`` of each region and channel, [R, C, 1, 1]."""
    channels = torch.arange(features.shape[1], device=rois.device)
    return (rois[:, :1].long() * features.shape[1] + channels)[:, :, None, None]


def _largest(counts: Tensor) -> int:
    return int(counts.max()) if counts.numel() else 0
