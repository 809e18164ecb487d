"""Crops of boxes for a CLIP image encoder, under one explicit, hashed policy.

Reading order: CropPolicy (rules), crop_regions (pixels), crop_windows (coordinates), join_scales (features).
Source: ViLD, ICLR 2022, Sec. 3.2 (1x and 1.5x crops); dyabel/detpro for the ``center_crop`` parity mode.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from ..files import sha256_json
from ..options import check_option

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CROP_VERSION = 1
_CHOICES = {
    'mode': ('warp', 'center_crop', 'pad_square', 'square_context'),
    'resize': ('exact', 'fast'),
    'outside': ('mean', 'black', 'clamp'),
    'rounding': ('outward', 'nearest', 'detpro'),
}
_ROIS_PER_CALL = 1024


@dataclass(frozen=True)
class CropPolicy:
    """Rules that turn a box into square crops. Stores made with different policies cannot be mixed.

    Args:
        mode: ``warp`` stretches the window to the square; ``center_crop`` resizes its short side and keeps
            the middle (CLIP's stock preprocessing, DetPro); ``pad_square`` pads the short side;
            ``square_context`` widens the window to a square around its centre, with real image content.
        scales: the box is enlarged around its centre by each factor; one crop per factor.
        resize: ``exact`` is the antialiased bicubic filter of Pillow, within 1 of 255 levels; ``fast`` is
            RoIAlign, an area average when shrinking and bilinear when enlarging: one call for all boxes,
            meant for a GPU (on a CPU ``exact`` is faster).
        outside: fill colour of pixels outside the image, the encoder's ``mean`` or ``black``; ``clamp`` moves
            the sides of the window (of a square: its position) into the image instead.
        rounding: of window coordinates to whole pixels: ``outward`` = floor, ceil; ``nearest``; ``detpro`` =
            outward after growing by 0.001, which adds one pixel if a coordinate is whole.
    """

    mode: str = 'warp'
    scales: tuple[float, ...] = (1.0, 1.5)
    resize: str = 'exact'
    outside: str = 'mean'
    rounding: str = 'outward'

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_option(f'crop policy: {name}', getattr(self, name), choices)
        object.__setattr__(self, 'scales', tuple(float(scale) for scale in self.scales))
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f'crop policy: scales must be positive numbers, got {self.scales}')

    def to_dict(self) -> dict[str, Any]:
        """JSON values of the settings, and the version of the algorithm."""
        return {**dataclasses.asdict(self), 'scales': list(self.scales), 'version': CROP_VERSION}

    @property
    def hash(self) -> str:
        """Hash of the settings and the version of the algorithm, 16 hexadecimal digits."""
        return sha256_json(self.to_dict())[:16]


def crop_regions(
    image: Tensor, boxes: Tensor, size: int, policy: CropPolicy, mean: Sequence[float] = CLIP_MEAN
) -> Tensor:
    """Crop every box at every scale.

    Args:
        image: uint8 [3, H, W], RGB.
        boxes: [M, 4] xyxy in pixels of ``image``; clipped to the image first.
        size: side of a crop in pixels.
        policy: rules, with S scales.
        mean: RGB in 0..1, the fill colour if ``policy.outside`` is ``mean``.
    Returns:
        uint8 [M * S, 3, size, size] on the image's device; box m at scale s is row ``m * S + s``.
    Raises:
        ValueError: the image is not uint8; a box is not finite or has no area inside the image.
    """
    if image.dtype != torch.uint8:  # a float image would give crops of wrong values without an error
        raise ValueError(f'expected a uint8 image, got {image.dtype}')
    windows = crop_windows(boxes, (image.shape[1], image.shape[2]), policy)
    if not len(windows):
        return image.new_empty((0, 3, size, size))
    fill = [0, 0, 0] if policy.outside == 'black' else [round(255 * channel) for channel in mean]
    if policy.resize == 'fast':
        return _crop_roi_align(image, windows, size, policy.mode, fill)
    canvas, left, top = _pad_image(image, windows, fill)
    crops = image.new_empty((len(windows), size, size, 3)).permute(0, 3, 1, 2)
    for index, (x1, y1, x2, y2) in enumerate(windows.long().tolist()):
        window = canvas[:, y1 + top : y2 + top, x1 + left : x2 + left]
        crops[index] = _RESIZE[policy.mode](window, size, fill)
    return crops


def crop_windows(boxes: Tensor, image_size: tuple[int, int], policy: CropPolicy) -> Tensor:
    """Windows [M * S, 4] of boxes [M, 4] under ``policy``: xyxy in whole pixels, float64, on the CPU."""
    height, width = image_size
    limit = torch.tensor([width, height, width, height], dtype=torch.float64)
    given = boxes.detach().cpu().double()
    inside = torch.minimum(given.clamp(min=0), limit)
    bad = ~(torch.isfinite(given).all(1) & (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f'box {index} = {given[index].tolist()} has no area inside the image of {width} x {height} pixels'
        )
    scales = torch.tensor(policy.scales, dtype=torch.float64)[:, None]
    first, second = inside[:, None, :2], inside[:, None, 2:]
    grown = torch.cat(
        [
            (1 + scales) / 2 * first + (1 - scales) / 2 * second,
            (1 + scales) / 2 * second + (1 - scales) / 2 * first,
        ],
        dim=-1,
    ).reshape(-1, 4)
    if policy.mode == 'square_context':
        windows = _square_windows(grown)
        if policy.outside == 'clamp':
            shift = (-windows[:, :2]).clamp(min=0) - (windows[:, 2:] - limit[2:]).clamp(min=0)
            windows = windows + shift.repeat(1, 2)
    else:
        windows = _round_windows(grown, policy.rounding)
    return torch.minimum(windows.clamp(min=0), limit) if policy.outside == 'clamp' else windows


def join_scales(features: Tensor, num_scales: int) -> Tensor:
    """Encoder outputs [M * S, D] -> unit vectors [M, D]: sum over scales in float32, then normalise."""
    summed = features.float().reshape(-1, num_scales, features.shape[-1]).sum(1)
    return F.normalize(summed, dim=-1)


def _round_windows(windows: Tensor, rounding: str) -> Tensor:
    if rounding == 'nearest':
        first = windows[:, :2].round()
        return torch.cat([first, torch.maximum(windows[:, 2:].round(), first + 1)], dim=1)
    margin = 0.001 if rounding == 'detpro' else 0.0
    return torch.cat([(windows[:, :2] - margin).floor(), (windows[:, 2:] + margin).ceil()], dim=1)


def _square_windows(windows: Tensor) -> Tensor:
    side = (windows[:, 2:] - windows[:, :2]).amax(1, keepdim=True).ceil()
    first = ((windows[:, :2] + windows[:, 2:] - side) / 2).round()
    return torch.cat([first, first + side], dim=1)


def _pad_image(image: Tensor, windows: Tensor, fill: list[int]) -> tuple[Tensor, int, int]:
    """Pad the image so that every window is a slice of it; also return the left and top padding."""
    height, width = image.shape[1:]
    left, top = (int((-windows[:, axis]).max().clamp(min=0)) for axis in (0, 1))
    right, bottom = (
        int((windows[:, a] - limit).max().clamp(min=0)) for a, limit in ((2, width), (3, height))
    )
    if not any((left, top, right, bottom)):
        return image, 0, 0
    canvas = image.new_tensor(fill).repeat(height + top + bottom, width + left + right, 1).permute(2, 0, 1)
    canvas[:, top : top + height, left : left + width] = image
    return canvas, left, top


def _resize_bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic like Pillow's on uint8 [3, h, w]: rows first, rounded to uint8 between the passes.

    torch's uint8 kernel (CPU only) is several times faster than the float one, but off by one level in 0.3 %
    of the pixels. Used for one of the two passes, the result stays within one level of Pillow's.
    """
    rows = _resize_bicubic_float(pixels, pixels.shape[1], width)
    if rows.device.type != 'cpu':
        return _resize_bicubic_float(rows, height, width)
    return F.interpolate(rows[None], size=(height, width), mode='bicubic', antialias=True)[0]


def _resize_bicubic_float(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize in float32; round to uint8."""
    resized = F.interpolate(pixels[None].float(), size=(height, width), mode='bicubic', antialias=True)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _warp(window: Tensor, size: int, fill: list[int]) -> Tensor:
    return _resize_bicubic(window, size, size)


def _center_crop(window: Tensor, size: int, fill: list[int]) -> Tensor:
    height, width = window.shape[1:]
    if width <= height:
        new_height, new_width = int(size * height / width), size
    else:
        new_height, new_width = size, int(size * width / height)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return _resize_bicubic(window, new_height, new_width)[:, top : top + size, left : left + size]


def _pad_square(window: Tensor, size: int, fill: list[int]) -> Tensor:
    height, width = window.shape[1:]
    side = max(height, width)
    square = window.new_tensor(fill).repeat(side, side, 1).permute(2, 0, 1)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = window
    return _resize_bicubic(square, size, size)


_RESIZE = {'warp': _warp, 'square_context': _warp, 'center_crop': _center_crop, 'pad_square': _pad_square}


def _crop_roi_align(image: Tensor, windows: Tensor, size: int, mode: str, fill: list[int]) -> Tensor:
    """RoIAlign of all windows, whose sides are adapted for ``center_crop`` and ``pad_square``."""
    sides = windows[:, 2:] - windows[:, :2]
    center = (windows[:, :2] + windows[:, 2:]) / 2
    rois = windows
    if mode in ('center_crop', 'pad_square'):
        side = sides.amin(1, keepdim=True) if mode == 'center_crop' else sides.amax(1, keepdim=True)
        rois = torch.cat([center - side / 2, center + side / 2], dim=1)
    canvas, left, top = _pad_image(image, torch.cat([rois[:, :2].floor(), rois[:, 2:].ceil()], dim=1), fill)
    shifted = (rois + torch.tensor([left, top] * 2)).float().to(image.device)
    shifted = torch.cat([shifted.new_zeros(len(shifted), 1), shifted], dim=1)
    pixels = canvas.float()[None].contiguous()
    crops = image.new_empty((len(windows), 3, size, size))
    for start in range(0, len(windows), _ROIS_PER_CALL):
        part = slice(start, start + _ROIS_PER_CALL)
        sampled = roi_align(pixels, shifted[part], size, sampling_ratio=-1, aligned=True)
        crops[part] = sampled.round().clamp(0, 255).to(torch.uint8)
    if mode == 'pad_square':
        _fill_outside(crops, rois, windows, fill)
    return crops


def _fill_outside(crops: Tensor, rois: Tensor, windows: Tensor, fill: list[int]) -> None:
    """Fill crop pixels whose centres lie outside their window, in place."""
    size = crops.shape[-1]
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    for axis, view in ((0, (-1, 1, 1, size)), (1, (-1, 1, size, 1))):
        position = rois[:, axis, None] + steps * (rois[:, axis + 2] - rois[:, axis])[:, None]
        beyond = (position < windows[:, axis, None]) | (position > windows[:, axis + 2, None])
        mask = beyond.reshape(view).to(crops.device)
        torch.where(mask, crops.new_tensor(fill).reshape(1, 3, 1, 1), crops, out=crops)
