"""A block of DyHead as GLIP uses it: attention over scale, space and task on the maps of a pyramid.

Source: Dai et al., "Dynamic Head", CVPR 2021; sizes, order and constants of the released GLIP code.
Reading order: DyHeadBlock, DynamicReLU.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import ModulatedDeformConv2d
from torch import Tensor, nn

_TAPS = 9


class DyHeadBlock(nn.Module):
    """Mixes each level with its neighbours, weighs the results and bends them.

    The convolution of the coarser neighbour reads the shifts of the finer level as one flat buffer: the
    compiled kernels never compare sizes, and published weights were trained with that.

    Args:
        channels: C of the maps; divisible by ``num_groups``.
        deformable: deformable convolutions, with shifts predicted from each level; else plain ones.
        num_groups: of the group norms.
        reduction: of the hidden layer of the bend.
        upsample: how the coarser branch is brought to the size of its level: 'bilinear' (corners aligned, as
            the published weights were trained) or 'nearest' (as mmdet's port runs them).
    """

    def __init__(
        self,
        channels: int = 256,
        deformable: bool = True,
        num_groups: int = 16,
        reduction: int = 4,
        upsample: str = 'bilinear',
    ) -> None:
        super().__init__()
        if channels % num_groups:
            raise ValueError(f'channels {channels} is not divisible by num_groups {num_groups}')
        if upsample not in ('bilinear', 'nearest'):
            raise ValueError(f"upsample must be 'bilinear' or 'nearest', got {upsample!r}")
        self.upsample = upsample
        kind: Any = ModulatedDeformConv2d if deformable else nn.Conv2d
        self.from_coarser = _ConvNorm(kind(channels, channels, 3, padding=1), num_groups)
        self.from_same = _ConvNorm(kind(channels, channels, 3, padding=1), num_groups)
        self.from_finer = _ConvNorm(kind(channels, channels, 3, stride=2, padding=1), num_groups)
        self.shifts = nn.Conv2d(channels, 3 * _TAPS, 3, padding=1) if deformable else None
        self.weigh = nn.Conv2d(channels, 1, 1)
        self.bend = DynamicReLU(channels, reduction)
        self._init_weights()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of L levels [B, C, h, w], finest first, each about half the size of the one before."""
        mixed = []
        for level, own in enumerate(maps):
            shifts = self._shifts(own)
            branches = [self.from_same(own, shifts)]
            if level > 0:
                branches.append(self.from_finer(maps[level - 1], shifts))
            if level < len(maps) - 1:
                coarser = self.from_coarser(maps[level + 1], shifts)
                branches.append(self._resized(coarser, own.shape[-2:]))
            weights = [
                F.hardsigmoid(F.relu(self.weigh(branch.mean((2, 3), keepdim=True)))) for branch in branches
            ]
            mixed.append(torch.stack([w * branch for w, branch in zip(weights, branches)]).mean(0))
        return [self.bend(level) for level in mixed]

    def _resized(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        if self.upsample == 'nearest':
            return F.interpolate(maps, size=size, mode='nearest')
        return F.interpolate(maps, size=size, mode='bilinear', align_corners=True)

    def _shifts(self, own: Tensor) -> tuple[Tensor, ...]:
        """Displacements [B, 18, h, w] and modulation [B, 9, h, w], as contiguous buffers; or nothing."""
        if self.shifts is None:
            return ()
        both = self.shifts(own)
        return both[:, : 2 * _TAPS].contiguous(), both[:, 2 * _TAPS :].sigmoid().contiguous()

    def _init_weights(self) -> None:
        """Normal convolutions without bias.

        Source: Dai et al. (released code): standard deviation 0.01; zero shifts are ours.
        """
        convs: list[Any] = [part.conv for part in (self.from_coarser, self.from_same, self.from_finer)]
        for conv in (*convs, self.weigh):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        if self.shifts is not None:
            for parameter in self.shifts.parameters():
                nn.init.zeros_(parameter)


class _ConvNorm(nn.Module):
    """A convolution, deformable or not, and a group norm."""

    def __init__(self, conv: Any, num_groups: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.GroupNorm(num_groups, conv.out_channels)

    def forward(self, x: Tensor, shifts: tuple[Tensor, ...]) -> Tensor:
        return self.norm(self.conv(x.contiguous(), *shifts))


class DynamicReLU(nn.Module):
    """The larger of two lines per channel, whose slopes and heights depend on the mean of the map.

    Source: Chen et al., "Dynamic ReLU", ECCV 2020; here with one slope around 1 and one around 0.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        hidden = F.relu(self.reduce(x.mean((2, 3))))
        slope, height, slope2, height2 = (
            part[..., None, None] for part in F.hardsigmoid(self.expand(hidden)).chunk(4, dim=1)
        )
        first = x * (2 * (slope - 0.5) + 1) + height - 0.5
        return torch.maximum(first, x * 2 * (slope2 - 0.5) + height2 - 0.5)
