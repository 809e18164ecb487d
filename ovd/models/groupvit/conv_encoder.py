"""A small convolutional GroupViT image encoder whose group features depend on their members only.

A group's feature is the mean of local features of its members, so a group that covers two objects matches no
word well, and the loss rewards good grouping. With attention before the mean, every group could see the whole
image, and grouping would not matter.

Source: Xu et al., GroupViT, CVPR 2022, without attention in the value path; measured in
docs/groupvit_shapes.md. Reading order: ConvGrouping, LocalMixer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MODELS
from ..clip_resnet import ClipResNet
from .encoder import Block, resize_positions
from .grouping import Assignment, CosineMerge, GroupingOutput, average
from .projection_head import JointBatchNorm

STRIDE = 8


@MODELS.register_module()
class ConvGrouping(nn.Module):
    """Image to groups in stages: tokens of stride 8 to many segments, to fewer, and so on.

    Two streams: values, local features of the last of three convolutional stages, are averaged over the
    members of a group; keys, from the first two stages and positions, determine the members. From the second
    grouping on, keys also depend on the values and, through transformer blocks, on each other.

    Args:
        stem: arguments of ``ClipResNet``; its first three stages are used, the third without its stride.
        dim: C, width of the values.
        mixers: ``LocalMixer`` layers over the values.
        key_dim: width of the keys and the group tokens.
        num_groups: groups, and learned group tokens, of each stage.
        depths: blocks before each grouping.
        num_heads: of the blocks.
        mlp_ratio: hidden width of a block's MLP over ``key_dim``.
        image_size: side of the position table; other input sizes are interpolated.
        standardize: standardise keys by batch statistics; without it one group tends to take everything.
        scale: initial multiplier of the cosines, see ``CosineMerge``.
        eps: see ``GroupingBlock``.
        assignment: arguments of every ``Assignment``.
    """

    def __init__(
        self,
        stem: Mapping[str, Any],
        dim: int = 128,
        mixers: int = 1,
        key_dim: int = 64,
        num_groups: Sequence[int] = (24, 8),
        depths: Sequence[int] = (0, 1),
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        image_size: int = 128,
        standardize: bool = True,
        scale: float = 10.0,
        eps: float = 1.0,
        assignment: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not num_groups or len(num_groups) != len(depths):
            raise ValueError(
                f'num_groups and depths must have equal length, got {tuple(num_groups)} and {tuple(depths)}'
            )
        self.patch_size = STRIDE
        self.dim = dim
        self.num_groups = num_groups[-1]
        self.stem = ClipResNet(out_indices=(0, 1, 2), flat_last=True, **stem)
        shallow, middle, deep = self.stem.channels
        self.embed = nn.Linear(deep, dim)
        self.mixers = nn.ModuleList(LocalMixer(dim) for _ in range(mixers))
        self.norm = nn.LayerNorm(dim)
        self.norm_keys = nn.LayerNorm(shallow + middle)
        self.keys = nn.Linear(shallow + middle, key_dim)
        self.grid = (image_size // STRIDE, image_size // STRIDE)
        table = torch.empty(1, self.grid[0] * self.grid[1], key_dim)
        self.positions = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.group_tokens = nn.ParameterList(torch.randn(1, count, key_dim) for count in num_groups)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(key_dim, num_heads, mlp_ratio) for _ in range(depth))) for depth in depths
        )
        self.merges = nn.ModuleList(
            CosineMerge(
                key_dim,
                scale=scale,
                center=JointBatchNorm(key_dim, affine=False) if standardize else None,
                eps=eps,
                assignment=Assignment(**assignment or {}),
            )
            for _ in num_groups
        )
        self.eps = eps
        self.value_keys = nn.ModuleList(nn.Linear(dim, key_dim) for _ in num_groups[1:])

    def forward(self, images: Tensor) -> GroupingOutput:
        """Normalised images [B, 3, H, W] of any size -> groups; ``tokens`` are the values.

        ``pooled`` is the mean over groups with members.
        """
        values, keys, grid = self.encode(images)
        soft: list[Tensor] = []
        hard: list[Tensor] = []
        members: list[Tensor] = []  # [B, groups of the stage, h * w]
        for index, (tokens, blocks, merge) in enumerate(zip(self.group_tokens, self.blocks, self.merges)):
            if members:
                keys = keys + self.value_keys[index - 1](average(members[-1], values, self.eps))
            x = blocks(torch.cat([keys, tokens.expand(len(keys), -1, -1)], dim=1))
            keys, groups = x.tensor_split([keys.shape[1]], dim=1)
            keys, shares, choices = merge(groups, keys, keys)
            soft.append(shares)
            hard.append(choices)
            members.append(choices @ members[-1] if members else choices)
        features = average(members[-1], values, self.eps)
        used = (members[-1].sum(-1, keepdim=True) > 0.5).to(features.dtype)
        pooled = (features * used).sum(1) / used.sum(1).clamp(min=1)
        return GroupingOutput(features, pooled, tuple(soft), tuple(hard), grid, values)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Images [B, 3, H, W] -> values [B, h * w, C], keys [B, h * w, key_dim] and the grid (h, w)."""
        shallow, middle, deep = self.stem(images)
        grid = (middle.shape[-2], middle.shape[-1])
        values = self.embed(deep.flatten(2).transpose(1, 2))
        for mixer in self.mixers:
            values = mixer(values, grid)
        early = torch.cat([F.adaptive_avg_pool2d(shallow, grid), middle], dim=1)
        keys = self.keys(self.norm_keys(early.flatten(2).transpose(1, 2)))
        return self.norm(values), keys + resize_positions(self.positions, self.grid, grid), grid


class LocalMixer(nn.Module):
    """Residual layer norm, 3 x 3 convolution, GELU, linear; initialised as the identity.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1).to(memory_format=torch.channels_last)
        self.proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, h * w, C] -> [B, h * w, C]."""
        maps = self.norm(x).transpose(1, 2).unflatten(2, grid)
        seen = self.conv(maps.contiguous(memory_format=torch.channels_last))
        return x + self.proj(F.gelu(seen).flatten(2).transpose(1, 2))
