"""GroupViT's image encoder: a vision transformer whose tokens are merged into groups stage by stage.

Source: Xu et al., GroupViT, CVPR 2022, Sec. 3.1. Reading order: GroupingTransformer, GroupingStage, Block,
position tables.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...options import check_option
from ...registry import MODELS
from .grouping import Assignment, Grouped, GroupingBlock, GroupingOutput, GroupProjector, Mlp

Size = int | tuple[int, int]


@MODELS.register_module()
class GroupingTransformer(nn.Module):
    """Image to groups. Lists have one entry per stage; every stage but the last ends in a grouping.

    Args:
        image_size: side, or (height, width), of the position table; other input sizes are interpolated.
        patch_size: side of a patch. Incomplete patches at the right and lower border are ignored.
        dims: width of each stage.
        depths: blocks of each stage.
        num_heads: of each stage.
        num_group_tokens: learned tokens of each stage; 0 for the last.
        num_output_groups: groups after each grouping, one entry less.
        mlp_ratio: hidden width of a block's MLP over its width.
        positions: 'simple', a learned table, or 'fourier', see ``sine_positions``.
        drop_path: maximum rate of stochastic depth; increases linearly from 0 over the blocks.
        grouping: further arguments of every ``GroupingBlock``.
        assignment: arguments of every ``Assignment``.
        with_checkpoint: recompute the blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        image_size: Size = 224,
        patch_size: int = 16,
        dims: Sequence[int] = (384, 384, 384),
        depths: Sequence[int] = (6, 3, 3),
        num_heads: Sequence[int] = (6, 6, 6),
        num_group_tokens: Sequence[int] = (64, 8, 0),
        num_output_groups: Sequence[int] = (64, 8),
        mlp_ratio: float = 4.0,
        positions: str = 'simple',
        drop_path: float = 0.0,
        grouping: dict[str, Any] | None = None,
        assignment: dict[str, Any] | None = None,
        with_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check_stages(dims, depths, num_heads, num_group_tokens, num_output_groups)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.patch_size = patch_size
        self.grid = (height // patch_size, width // patch_size)
        self.patch_embed = nn.Conv2d(3, dims[0], patch_size, patch_size)
        self.norm_patches = nn.LayerNorm(dims[0])
        self.positions = _make_positions(positions, self.grid, dims[0])
        rates = [drop_path * block / max(sum(depths) - 1, 1) for block in range(sum(depths))]
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            first = sum(depths[:i])
            self.stages.append(
                GroupingStage(
                    dim=dims[i],
                    previous=(num_group_tokens[i - 1], dims[i - 1]) if i else None,
                    num_tokens=num_group_tokens[i],
                    blocks=[
                        Block(dims[i], num_heads[i], mlp_ratio, rate) for rate in rates[first : first + depth]
                    ],
                    grouping=GroupingBlock(
                        dims[i],
                        num_group_tokens[i],
                        num_output_groups[i],
                        num_heads[i],
                        out_dim=dims[i + 1],
                        assignment=Assignment(**assignment or {}),
                        **grouping or {},
                    )
                    if i + 1 < len(depths)
                    else None,
                    with_checkpoint=with_checkpoint,
                )
            )
        self.norm = nn.LayerNorm(dims[-1])
        self.dim = dims[-1]
        self.num_groups = num_output_groups[-1]
        self._initialize()
        self._register_load_state_dict_pre_hook(self._fit_positions)

    def forward(self, images: Tensor) -> GroupingOutput:
        """Normalised images [B, 3, H, W] of any size -> groups."""
        x, grid = self.embed(images)
        tokens, soft, hard = None, [], []
        for stage in self.stages:
            x, tokens, grouped = stage(x, tokens)
            if grouped is not None:
                soft.append(grouped.soft)
                hard.append(grouped.hard)
        features = self.norm(x)
        return GroupingOutput(features, features.mean(dim=1), tuple(soft), tuple(hard), grid)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images [B, 3, H, W] -> patches with their positions, [B, h * w, C], and the grid (h, w)."""
        patches = self.patch_embed(images)
        grid = (patches.shape[-2], patches.shape[-1])
        table = resize_positions(self.positions, self.grid, grid)
        return self.norm_patches(patches.flatten(2).transpose(1, 2)) + table, grid

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _fit_positions(self, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
        """Load hook: resize a position table of another, square, grid."""
        key = f'{prefix}positions'
        table = tensors.get(key)
        if isinstance(table, Tensor) and table.dim() == 3 and table.shape[1] != self.positions.shape[1]:
            tensors[key] = resize_positions(table, square_grid(table.shape[1]), self.grid)


class GroupingStage(nn.Module):
    """Transformer blocks over segments and group tokens, then a grouping.

    Args:
        dim: width.
        previous: number and width of the group tokens of the stage before, None for the first.
        num_tokens: group tokens; 0 for the last stage.
        blocks: of the transformer.
        grouping: merges the segments at the end; None for the last stage.
        with_checkpoint: see ``GroupingTransformer``.
    """

    def __init__(
        self,
        dim: int,
        previous: tuple[int, int] | None,
        num_tokens: int,
        blocks: Sequence[nn.Module],
        grouping: GroupingBlock | None,
        with_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.group_tokens: nn.Parameter | None = None
        self.projector: GroupProjector | None = None
        if num_tokens:
            self.group_tokens = nn.Parameter(torch.zeros(1, num_tokens, dim))
            if previous is None:
                nn.init.trunc_normal_(self.group_tokens, std=0.02)
            else:
                self.projector = GroupProjector(previous[1], previous[0], num_tokens, dim)
        self.blocks = nn.ModuleList(blocks)
        self.grouping = grouping
        self.with_checkpoint = with_checkpoint

    def forward(
        self, segments: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Grouped | None]:
        """Run one stage.

        Args:
            segments: [B, L, C].
            previous: group tokens of the stage before, after its blocks; None for the first stage.
        Returns:
            the new segments; this stage's group tokens after its blocks; the grouping. The last two are None
            in the last stage.
        """
        if self.group_tokens is None or self.grouping is None:
            return self._run(segments), None, None
        tokens = self.group_tokens.expand(len(segments), -1, -1)
        if self.projector is not None:
            tokens = tokens + self.projector(previous)
        count = segments.shape[1]
        x = self._run(torch.cat([segments, tokens.to(segments.dtype)], dim=1))
        segments, tokens = x[:, :count], x[:, count:]
        grouped = self.grouping(segments, tokens)
        return grouped.segments, tokens, grouped

    def _run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.with_checkpoint and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        dim: width C.
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP over C.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention, [B, L, C] -> [B, L, C]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.proj(seen.transpose(1, 2).flatten(2))


def resize_positions(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a table [1, h * w, C] from one grid (h, w) to another, bicubic."""
    if source == target:
        return table
    grid = table.float().transpose(1, 2).unflatten(2, source)
    grid = F.interpolate(grid, size=target, mode='bicubic', align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)


def square_grid(count: int) -> tuple[int, int]:
    """Square grid of ``count`` patches.

    Raises:
        ValueError: ``count`` is not a square.
    """
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f'a position table of {count} rows is not a square grid')
    return side, side


def sine_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed table [1, h * w, C]: sines and cosines of the column, then of the row, each C / 4 wide.

    The table is column-major while patches are row-major, so on a square grid a patch gets the position
    mirrored at the diagonal. Released weights were trained with this table.
    """
    height, width = grid
    column, row = torch.meshgrid(torch.arange(width), torch.arange(height), indexing='ij')
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    across, down = (index.reshape(-1, 1) * frequencies for index in (column, row))
    return torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=1)[None]


def _make_positions(kind: str, grid: tuple[int, int], dim: int) -> nn.Parameter:
    check_option('positions', kind, ('simple', 'fourier'))
    if kind == 'fourier':
        return nn.Parameter(sine_positions(grid, dim), requires_grad=False)
    table = torch.empty(1, grid[0] * grid[1], dim)
    return nn.Parameter(nn.init.trunc_normal_(table, std=0.02))


def _check_stages(
    dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    num_group_tokens: Sequence[int],
    num_output_groups: Sequence[int],
) -> None:
    """Raise ValueError for lists of unequal length or stages without group tokens."""
    lists = {'dims': dims, 'depths': depths, 'num_heads': num_heads, 'num_group_tokens': num_group_tokens}
    stages = len(depths)
    if any(len(values) != stages for values in lists.values()) or len(num_output_groups) != stages - 1:
        lists['num_output_groups'] = num_output_groups
        raise ValueError(
            f'lists of stages differ in length: '
            f'{", ".join(f"{name} has {len(values)}" for name, values in lists.items())}'
        )
    if stages < 2 or num_group_tokens[-1] or not all(num_group_tokens[:-1]):
        raise ValueError(
            f'num_group_tokens must be positive for all but the last of >= 2 stages, got {num_group_tokens}'
        )
