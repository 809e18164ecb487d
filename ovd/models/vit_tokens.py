"""Plain vision transformers that return the tokens after chosen blocks, at any image size.

Reading order: VitTokens (the forward pass), TimmViT and ClipViT (where the parts come from), load_pretrained.
"""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoints.loading import load_into, load_tensors
from ..encoders.loading import build_clip
from ..options import check_option
from ..registry import MODELS

_HUB = 'timm:'
_CACHED_SIZES = 8  # resized position tables cached in evaluation


class VitTokens(nn.Module):
    """Patch tokens of a ViT after some of its blocks: raw residual stream, no final norm.

    Prefix tokens (class token, then registers) precede the patch tokens.

    Attributes:
        width: E. patch_size: pixels. grid: (rows, columns) of patches of the pretrained position table.
        num_prefix_tokens: class token and registers.
        blocks: the transformer.

    Args:
        grad_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        position_resize: interpolation of the position table, 'bilinear' (LSeg) or 'bicubic'.
        antialias: antialias when the position table shrinks.
    """

    width: int
    patch_size: int
    grid: tuple[int, int]
    num_prefix_tokens: int
    blocks: nn.Sequential

    def __init__(
        self, grad_checkpointing: bool = False, position_resize: str = 'bilinear', antialias: bool = False
    ) -> None:
        super().__init__()
        check_option('position_resize', position_resize, ('bilinear', 'bicubic'))
        self.grad_checkpointing = grad_checkpointing
        self.position_resize, self.antialias = position_resize, antialias
        self._tables: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, images: Tensor, hooks: Sequence[int]) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens after the blocks ``hooks``.

        Args:
            images: [B, 3, H, W], normalised as the weights expect.
            hooks: ascending indices of blocks, counted from 0.
        Returns:
            for each hook [B, prefix + h * w, E], and the grid (h, w) = (H // patch, W // patch).
        """
        patches = self.embed_patches(images)
        grid = (patches.shape[2], patches.shape[3])
        tokens = self.prepare(patches.flatten(2).mT, grid)
        collected = []
        for index, block in enumerate(self.blocks):
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in hooks:
                collected.append(tokens)
        return collected, grid

    def embed_patches(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> patch features [B, E, h, w]."""
        raise NotImplementedError

    def prepare(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens [B, h * w, E] -> the input of the first block."""
        raise NotImplementedError

    def load(self, source: str) -> None:
        """Load published weights."""
        raise NotImplementedError

    def drop_blocks_after(self, hooks: Sequence[int]) -> None:
        """Keep the blocks up to the last hook."""
        if list(hooks) != sorted(set(hooks)) or not 0 <= hooks[0] <= hooks[-1] < len(self.blocks):
            raise ValueError(
                f'hooks must be ascending block indices from 0 to {len(self.blocks) - 1}, got {list(hooks)}'
            )
        self.blocks = self.blocks[: hooks[-1] + 1]

    def position_table(self, table: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
        """Interpolate the position table to another grid of patches.

        In evaluation without gradients, recent sizes are cached until the table or the mode changes.

        Args:
            table: [1, prefix + rows * columns, E] for ``self.grid``.
            grid: (h, w).
            num_prefix: leading rows of prefix tokens, left unchanged.
        Returns:
            [1, prefix + h * w, E].
        """
        if grid == self.grid:
            return table
        if self.training or torch.is_grad_enabled() or table.is_inference():
            return self._resized(table, grid, num_prefix)
        key = (grid, table.data_ptr(), table._version, table.dtype, table.device)
        if key not in self._tables:
            while len(self._tables) >= _CACHED_SIZES:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = self._resized(table, grid, num_prefix)
        return self._tables[key]

    def _resized(self, table: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
        prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
        resized = F.interpolate(
            patches.mT.unflatten(2, self.grid).float(),
            size=grid,
            mode=self.position_resize,
            align_corners=False,
            antialias=self.antialias,
        )
        return torch.cat([prefix, resized.flatten(2).mT.to(table.dtype)], dim=1)

    def train(self, mode: bool = True) -> 'VitTokens':
        """Switch mode and drop cached position tables: hooks may change weights without autograd noticing."""
        self._tables.clear()
        return super().train(mode)


@MODELS.register_module()
class TimmViT(VitTokens):
    """A ViT of timm, without its final norm and classifier.

    Args:
        model: name of a plain ViT in timm ('vit_large_patch16_384'); no weights are loaded here.
        options: further arguments of that model, for example ``img_size`` of the weights.
        **kwargs: of ``VitTokens``.
    """

    def __init__(self, model: str, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model, self.options = model, dict(options or {})
        vit = self._create()
        if not isinstance(vit, timm.models.VisionTransformer) or vit.cls_token is None:
            raise ValueError(f'timm model {model!r} is not a plain ViT with a class token')
        self.width, self.num_prefix_tokens = vit.embed_dim, vit.num_prefix_tokens
        self.patch_size, self.grid = vit.patch_embed.patch_size[0], vit.patch_embed.grid_size
        self.no_embed_class = vit.no_embed_class
        self.patch_embed, self.blocks = vit.patch_embed, vit.blocks
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.pos_drop, self.norm_pre = vit.pos_drop, vit.norm_pre

    def embed_patches(self, images: Tensor) -> Tensor:
        return self.patch_embed.proj(images)

    def prepare(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.patch_embed.norm(patches)
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        num_prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        table = None if self.pos_embed is None else self.position_table(self.pos_embed, grid, num_prefix)
        if table is not None and self.no_embed_class:
            tokens = tokens + table
        tokens = torch.cat([*(token.expand(len(tokens), -1, -1) for token in prefix), tokens], dim=1)
        if table is not None and not self.no_embed_class:
            tokens = tokens + table
        return self.norm_pre(self.pos_drop(tokens))

    def load(self, source: str) -> None:
        """Load a file or 'timm:TAG'; norm, classifier and dropped blocks are skipped."""
        unused = ('norm.*', 'fc_norm.*', 'head.*', 'attn_pool.*', 'blocks.*')
        load_pretrained(self, source, self._create, self.model, unused)

    def _create(self, pretrained: bool = False, tag: str = '') -> nn.Module:
        return create_timm(self.model, pretrained, tag, num_classes=0, **self.options)


@MODELS.register_module()
class ClipViT(VitTokens):
    """The ViT of a CLIP, with its pre-norm, class embedding and position table.

    Expects images normalised with CLIP's statistics.

    Args:
        model, pretrained: see ``ovd.encoders.loading.build_clip``; loaded on construction.
        **kwargs: of ``VitTokens``.
    """

    def __init__(self, model: str, pretrained: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        visual: Any = build_clip(model, pretrained).model.visual
        if not hasattr(visual, 'class_embedding') or not hasattr(visual, 'transformer'):
            raise ValueError(f'image tower of CLIP {model!r} is not a plain ViT: {type(visual).__name__}')
        self.width, self.num_prefix_tokens = visual.conv1.out_channels, 1
        self.patch_size, self.grid = visual.patch_size[0], tuple(visual.grid_size)
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.blocks = nn.Sequential(*visual.transformer.resblocks)

    def embed_patches(self, images: Tensor) -> Tensor:
        return self.conv1(images)

    def prepare(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        table = self.position_table(self.positional_embedding[None], grid, 1)
        return self.ln_pre(torch.cat([class_token, patches], dim=1) + table.to(patches.dtype))

    def load(self, source: str) -> None:
        raise ValueError(
            f'init_cfg {source!r} has no effect: ovd.ClipViT loads its weights from `model` and `pretrained`'
        )


def create_timm(model: str, pretrained: bool, tag: str, **options: Any) -> nn.Module:
    """Create a timm model, with the weights of the release ``tag`` if ``pretrained``.

    Raises:
        ValueError: unknown model; the message suggests similar names.
    """
    if not {':', '/'} & set(model) and not timm.is_model(model):
        known = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f', did you mean {" or ".join(map(repr, known))}?' if known else ''
        raise ValueError(f'timm has no model {model!r}{hint}')
    name = f'{model}.{tag}' if tag else model
    return timm.create_model(name, pretrained=pretrained, **options)


def pretrained_source(init_cfg: Any) -> str | None:
    """Checkpoint of an ``init_cfg`` of type 'Pretrained', else None."""
    if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained':
        return init_cfg['checkpoint']
    return None


def load_pretrained(
    module: nn.Module,
    source: str,
    create: Callable[..., nn.Module],
    model: str,
    unused: Sequence[str],
) -> None:
    """Load weights of a timm model strictly.

    Args:
        source: a file, or 'timm:TAG', which timm downloads.
        create: ``create(pretrained=True, tag=TAG)`` makes the timm module with released weights.
        model: its name, for messages.
        unused: patterns of keys of the source to skip.
    Raises:
        FileNotFoundError: missing file, or a release that is neither cached nor downloadable.
        ValueError: a weight is missing or of another shape; the message names it.
    """
    if source.startswith(_HUB):
        tag = source.removeprefix(_HUB)
        try:
            tensors = dict(create(pretrained=True, tag=tag).state_dict())
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f'release {tag!r} of {model!r} is not cached and cannot be downloaded '
                f'({" ".join(str(error).split())[:200]}); download it elsewhere and give the file'
            ) from None
    elif not os.path.exists(source):
        raise FileNotFoundError(
            f"weights {source} of {model!r} do not exist; see data/README.md, Weights, or give 'timm:TAG'"
        )
    else:
        tensors = load_tensors(source)
    load_into(module, tensors, allow_unexpected=unused, source=source)
