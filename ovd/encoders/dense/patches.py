"""Joint-space vectors of the patches of an image tower, for the kinds of towers that open_clip builds.

A tower turns its last features into one vector by pooling and a projection. Here every patch goes through
what follows the pooling as if it were the whole image: a map of equal patches gives the tower's own vector.

Reading order: PatchTower (the interface), OpenClipVit, TimmVit, AttentionPoolResNet, ConvMap,
find_patch_tower.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .attention import Heads, Variant

Mixer = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class PatchTower(nn.Module, ABC):
    """What gives a map of joint-space vectors.

    Attributes:
        stride: pixels of the input per cell of the map.
        with_attention: whether the last attention can be exchanged; otherwise only ``plain`` is possible.
    """

    stride: int
    with_attention = True

    @abstractmethod
    def forward(self, images: Tensor, variant: Variant, proxy: Tensor | None = None) -> Tensor:
        """Normalised images [B, 3, H, W], sides multiples of ``stride`` -> [B, D, h, w], of any length.

        Args:
            variant: how the last block is run.
            proxy: features of another tower [B, C, h', w'], unit length, for a variant that regroups.
        """


class VitTower(PatchTower):
    """Transformers: blocks in a row, the last of them run in the way of a variant.

    A subclass supplies the parts; ``prefix`` counts the tokens before the patches.
    """

    prefix: int

    def forward(self, images: Tensor, variant: Variant, proxy: Tensor | None = None) -> Tensor:
        tokens, grid, extra = self.embed(images)
        blocks = list(self.blocks())
        if variant.blocks > len(blocks):
            raise ValueError(f'the attention spans {variant.blocks} blocks, the tower has {len(blocks)}')

        def mix(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            return variant.mix(Heads(query, key, value, scale, self.prefix, grid))

        path: Tensor | None = None
        for index, block in enumerate(blocks):
            is_last = index == len(blocks) - 1
            if index >= len(blocks) - variant.blocks:
                mixed = self.attend(block, tokens, extra, mix)
                start = tokens if path is None and variant.residual else path
                path = mixed if start is None else start + mixed
                if is_last and variant.feed_forward:
                    path = self.feed_forward(block, path)
            if not is_last:
                tokens = self.run(block, tokens, extra)
        assert path is not None
        maps = path[:, self.prefix :].mT.unflatten(2, grid)
        maps = _regrouped(maps, variant, proxy)
        return self.project(maps.flatten(2).mT).mT.unflatten(2, (maps.shape[2], maps.shape[3]))

    @abstractmethod
    def blocks(self) -> Any:
        """The blocks in their order."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Any]:
        """Images -> tokens [B, prefix + h * w, E], (h, w), and what the blocks need besides."""

    @abstractmethod
    def run(self, block: Any, tokens: Tensor, extra: Any) -> Tensor:
        """A block as it is."""

    @abstractmethod
    def attend(self, block: Any, tokens: Tensor, extra: Any, mix: Mixer) -> Tensor:
        """The attention branch of a block with ``mix`` in the place of softmax(q k^T) v, without residual."""

    @abstractmethod
    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        """The feed-forward part of a block with its residual."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Patch tokens [B, N, E] -> [B, N, D]."""


class OpenClipVit(VitTower):
    """open_clip's own vision transformer."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.stride = int(visual.patch_size[0])

    def blocks(self) -> Any:
        return self.visual.transformer.resblocks

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Any]:
        visual = self.visual
        patches = visual.conv1(images)
        grid = (patches.shape[2], patches.shape[3])
        first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches.flatten(2).mT], dim=1)
        table = resized_positions(visual.positional_embedding, visual.grid_size, grid, self.prefix)
        return visual.ln_pre(tokens + table.to(tokens.dtype)), grid, None

    def run(self, block: Any, tokens: Tensor, extra: Any) -> Tensor:
        tokens = block(tokens)
        return tokens

    def attend(self, block: Any, tokens: Tensor, extra: Any, mix: Mixer) -> Tensor:
        mixed = mix_multihead(block.attn, block.ln_1(tokens), mix)
        return block.ls_1(mixed)

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def project(self, tokens: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is not None:  # CoCa: pooled by attention of learned queries, then normalised
            pool = visual.attn_pool
            tokens = value_path(pool.attn, pool.ln_k(tokens))
        tokens = visual.ln_post(tokens)
        return tokens if visual.proj is None else tokens @ visual.proj


class TimmVit(VitTower):
    """timm's plain transformers in open_clip's wrapper: SigLIP, PE, EVA-CLIP, MobileCLIP-B, ViTamin.

    The image size of the trunk is set free; position tables and rotary positions follow by timm's own
    resampling.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        trunk = visual.trunk
        self.prefix = int(trunk.num_prefix_tokens)
        ratio = trunk.patch_embed.feat_ratio()
        self.stride = int(ratio)
        if hasattr(trunk, 'rope_mixed') and trunk.rope_mixed:
            raise ValueError('its rotary positions differ from block to block')
        trunk.patch_embed.strict_img_size = False
        trunk.patch_embed.flatten = False
        trunk.patch_embed.output_fmt = type(trunk.patch_embed.output_fmt)('NHWC')
        trunk.dynamic_img_size = True

    def blocks(self) -> Any:
        return self.visual.trunk.blocks

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Any]:
        trunk = self.visual.trunk
        patches = trunk.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        with _rotary_grid(trunk, grid):
            tokens = trunk._pos_embed(patches)
        options = {}
        if isinstance(tokens, tuple):
            tokens, rope = tokens
            options = {'rope': rope}
        return trunk.norm_pre(tokens), grid, options

    def run(self, block: Any, tokens: Tensor, extra: Any) -> Tensor:
        tokens = block(tokens, **extra)
        return tokens

    def attend(self, block: Any, tokens: Tensor, extra: Any, mix: Mixer) -> Tensor:
        with _ExchangedAttention(mix) as exchanged:
            mixed = block.attn(block.norm1(tokens), **extra)
        if not exchanged.calls:
            raise RuntimeError(
                'timm was told not to use fused attention (TIMM_FUSED_ATTN=0), whose place a variant takes'
            )
        return _scaled(block, mixed, 'ls1', 'gamma_1')

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + _scaled(block, block.mlp(block.norm2(tokens)), 'ls2', 'gamma_2')

    def project(self, tokens: Tensor) -> Tensor:
        trunk = self.visual.trunk
        tokens = trunk.norm(tokens)
        if trunk.attn_pool is not None:  # SigLIP, PE: a pool of one token is its value path
            tokens = trunk.attn_pool(tokens.flatten(0, 1)[:, None]).view(*tokens.shape[:2], -1)
        return self.visual.head(trunk.head(trunk.fc_norm(tokens)))


class AttentionPoolResNet(PatchTower):
    """CLIP's ResNet through its attention pool, which has neither residual nor feed-forward part.

    Values come from the features alone: the pool's position table, made for queries and keys of one grid,
    would add to every patch a vector that depends on nothing but where it is.
    """

    stride = 32

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor, variant: Variant, proxy: Tensor | None = None) -> Tensor:
        visual = self.visual
        maps = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            maps = stage(maps)
        pool, grid = visual.attnpool, (maps.shape[2], maps.shape[3])
        patches = maps.flatten(2).mT
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
        side = round((len(pool.positional_embedding) - 1) ** 0.5)
        placed = tokens + resized_positions(pool.positional_embedding, (side, side), grid, 1)
        query, key, value = (
            _split_heads(project(source), pool.num_heads)
            for project, source in ((pool.q_proj, placed), (pool.k_proj, placed), (pool.v_proj, tokens))
        )
        scale = query.shape[-1] ** -0.5
        mixed = variant.mix(Heads(query, key, value, scale, 1, grid))
        found = pool.c_proj(mixed.transpose(1, 2).flatten(2))[:, 1:].mT.unflatten(2, grid)
        return _regrouped(found, variant, proxy)


class ConvMap(PatchTower):
    """Convolutional towers that average their map: ConvNeXt, FastViT (MobileCLIP-S).

    Every position goes through the head as a map of one pixel.
    """

    with_attention = False

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.stride = int(visual.trunk.feature_info[-1]['reduction'])

    def forward(self, images: Tensor, variant: Variant, proxy: Tensor | None = None) -> Tensor:
        trunk = self.visual.trunk
        maps = trunk.forward_features(images)
        batch, channels, height, width = maps.shape
        pixels = maps.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        vectors = self.visual.head(trunk.forward_head(pixels))
        found = vectors.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return _regrouped(found, variant, proxy)


def find_patch_tower(visual: Any) -> PatchTower:
    """What gives the patches of an image tower of open_clip.

    Raises:
        ValueError: a tower whose last map cannot be compared with words; the message says why.
    """
    kind = type(visual).__name__
    if kind == 'VisionTransformer':
        block = visual.transformer.resblocks[-1]
        if not isinstance(block.attn, nn.MultiheadAttention):
            raise ValueError(f'its blocks have their own attention ({type(block.attn).__name__})')
        if getattr(visual, 'attn_pool_contrastive', None) is not None:
            raise ValueError('it is pooled twice, by two layers of learned queries')
        return OpenClipVit(visual)
    if kind == 'ModifiedResNet':
        return AttentionPoolResNet(visual)
    trunk = getattr(visual, 'trunk', None)
    name = type(trunk).__name__
    if name in ('VisionTransformer', 'Eva'):
        return TimmVit(visual)
    if name in ('ConvNeXt', 'FastVit'):
        return ConvMap(visual)
    if name == 'SwinTransformer':
        raise ValueError('the windows of a Swin transformer are tied to its input size')
    if name == 'VisionTransformerRelPos':
        raise ValueError('its relative positions are tied to its input size')
    raise ValueError(f'no patches are known of a {name if trunk is not None else kind}')


def resized_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """A learned position table for another grid.

    Args:
        table: [prefix + old rows * old columns, E].
        old, new: (rows, columns); the table itself is returned where they are equal.
        prefix: rows that belong to class tokens; they stay.
    Returns:
        [prefix + new rows * new columns, E]: bicubic interpolation, filtered where the grid shrinks.
    """
    if tuple(old) == tuple(new):
        return table
    maps = table[prefix:].float().T.reshape(1, -1, *old)
    maps = F.interpolate(maps, new, mode='bicubic', align_corners=False, antialias=True)
    return torch.cat([table[:prefix], maps.flatten(2)[0].T.to(table.dtype)])


def mix_multihead(attention: nn.MultiheadAttention, tokens: Tensor, mix: Mixer) -> Tensor:
    """torch's multi-head self-attention of tokens [B, N, E] with ``mix`` in place of softmax(q k^T) v."""
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (_split_heads(part, attention.num_heads) for part in projected.chunk(3, dim=-1))
    mixed = mix(query, key, value, query.shape[-1] ** -0.5)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def value_path(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """What torch's multi-head attention answers when all weight lies on one token: [B, N, C] -> [B, N, E]."""
    width = attention.embed_dim
    weight = attention.v_proj_weight if attention.in_proj_weight is None else attention.in_proj_weight
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[-width:]
    return attention.out_proj(F.linear(tokens, weight[-width:], bias))


class _ExchangedAttention(TorchFunctionMode):
    """Hands the queries, keys and values of a block to a variant, wherever timm's classes make them.

    Biases, rotary positions, norms of queries and gates differ from class to class; all of them end in
    torch's attention function.
    """

    def __init__(self, mix: Mixer) -> None:
        super().__init__()
        self.mix, self.calls = mix, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        self.calls += 1
        query, key, value = args[:3]
        scale = (kwargs or {}).get('scale') or query.shape[-1] ** -0.5
        return self.mix(query, key, value, scale)


@contextmanager
def _rotary_grid(trunk: Any, grid: tuple[int, int]) -> Iterator[None]:
    """Rotary positions of a trunk of timm's for another grid; the module is shared, so they are put back."""
    rope, native = getattr(trunk, 'rope', None), tuple(trunk.patch_embed.grid_size)
    if rope is None or grid == native:
        yield
        return
    rope.update_feat_shape(list(grid))
    try:
        yield
    finally:
        rope.update_feat_shape(list(native))


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, E] -> [B, heads, N, E / heads]."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def _regrouped(maps: Tensor, variant: Variant, proxy: Tensor | None) -> Tensor:
    """Maps [B, E, h, w] averaged over alike patches, where the variant asks for it."""
    if variant.regroup is None:
        return maps
    assert proxy is not None
    return variant.regroup(maps, proxy)


def _scaled(block: Any, branch: Tensor, module: str, parameter: str) -> Tensor:
    """A branch of one of timm's blocks after its layer scale, which is a module or a parameter."""
    if hasattr(block, module):
        return getattr(block, module)(branch)
    factor = getattr(block, parameter, None)
    return branch if factor is None else factor * branch
