"""What takes the place of query-key attention in the last block of a CLIP image tower.

Query-key attention gathers what the class token needs, so a patch ends up with the content of others. Each
variant here mixes the values of the last block in another way; every patch can then be compared with words.
All are functions of the heads of one block, written from the formulas of the papers. Similarities are scaled
by 1 / sqrt(d) as in the block itself.

Reading order: Heads, the variants in the order of their years, VARIANTS (which parts of the block remain),
find_variant.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Heads(NamedTuple):
    """Queries, keys and values of the last block.

    Attributes:
        query, key, value: [B, heads, prefix + h * w, d]; class tokens and registers first, then the patches.
        scale: of similarities, 1 / sqrt(d) unless the tower has its own.
        prefix: number of tokens before the patches.
        grid: (h, w).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    prefix: int
    grid: tuple[int, int]


Mix = Callable[[Heads], Tensor]
Regroup = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """How the last block is run.

    Attributes:
        mix: heads -> mixed values [B, heads, prefix + h * w, d].
        residual: the block's input is added to its attention.
        feed_forward: the block's feed-forward part follows.
        blocks: 1, or the number of last blocks whose attention is summed into a path of its own.
        regroup: averages what comes out of the attention, [B, E, h, w], over alike patches, as the features
            [B, C, h', w'] of another tower have it, into [B, E, h', w'].
    """

    mix: Mix
    residual: bool
    feed_forward: bool
    blocks: int = 1
    regroup: Regroup | None = None


def plain(heads: Heads) -> Tensor:
    """softmax(q k^T) v: the tower as it was trained."""
    return _attend(heads, heads.query, heads.key)


def maskclip(heads: Heads) -> Tensor:
    """v: every token keeps its own value.

    Source: Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022, Sec. 3.2.
    """
    return heads.value


def clipsurgery(heads: Heads) -> Tensor:
    """softmax(v v^T) v.

    Source: Li et al., "CLIP Surgery for Better Explainability", arXiv 2304.05653, Sec. 3.2.
    """
    return _attend(heads, heads.value, heads.value)


def sclip(heads: Heads) -> Tensor:
    """(softmax(q q^T) + softmax(k k^T)) v, the correlative self-attention.

    Source: Wang et al., "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference", ECCV 2024,
        Eq. 3.
    """
    return _attend(heads, heads.query, heads.query) + _attend(heads, heads.key, heads.key)


def clearclip(heads: Heads) -> Tensor:
    """softmax(q q^T) v, without residual and feed-forward part.

    Source: Lan et al., "ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference",
        ECCV 2024, Sec. 3.
    """
    return _attend(heads, heads.query, heads.query)


def naclip(heads: Heads, sigma: float = 5.0) -> Tensor:
    """softmax(k k^T + g) v, g a Gaussian of the distance between two patches, 0 for class tokens.

    Args:
        sigma: of the Gaussian, in patches.

    Source: Hajimiri et al., "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic
        Segmentation", WACV 2025, Sec. 3.
    """
    near = gaussian_neighbours(heads.grid, sigma).to(heads.key)
    bias = F.pad(near, (heads.prefix, 0, heads.prefix, 0))
    return _attend(heads, heads.key, heads.key, bias)


def proxyclip(values: Tensor, proxy: Tensor, beta: float = 1.2, gamma: float = 3.0) -> Tensor:
    """softmax(gamma (a - beta mean(a)) where that is positive) v, a the cosines of another tower's features.

    The weights are the same for all heads and add up to 1, so v may be what the output projection of the
    attention makes of the values. A patch always attends to itself.

    Args:
        values: [B, E, h, w]; resized to the grid of the proxy.
        proxy: features [B, C, h', w'], unit length.
        beta: how far above the mean cosine a similarity must lie.
        gamma: sharpness.
    Returns:
        [B, E, h', w'].

    Source: Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation",
        ECCV 2024, Sec. 3.2.
    """
    grid = proxy.shape[2:]
    if values.shape[2:] != grid:
        values = F.interpolate(values, grid, mode='bilinear', align_corners=False)
    features = proxy.flatten(2).to(values)
    cosines = features.mT @ features
    similar = gamma * (cosines - beta * cosines.mean((1, 2), keepdim=True))
    itself = torch.eye(similar.shape[1], dtype=torch.bool, device=similar.device)
    weights = similar.masked_fill((similar < 0) & ~itself, float('-inf')).softmax(-1)
    return (values.flatten(2) @ weights.mT).unflatten(2, tuple(grid))


def gaussian_neighbours(grid: tuple[int, int], sigma: float) -> Tensor:
    """exp(-distance^2 / (2 sigma^2)) of each pair of patches of a grid (h, w), [h * w, h * w]."""
    along = [
        torch.exp(-((torch.arange(side)[:, None] - torch.arange(side)) ** 2) / (2 * sigma**2))
        for side in grid
    ]
    count = grid[0] * grid[1]
    return (along[0][:, None, :, None] * along[1][None, :, None, :]).reshape(count, count)


def _attend(heads: Heads, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(scale left right^T + bias) v."""
    return F.scaled_dot_product_attention(left, right, heads.value, attn_mask=bias, scale=heads.scale)


VARIANTS: dict[str, Variant] = {
    'plain': Variant(plain, residual=True, feed_forward=True),
    'maskclip': Variant(maskclip, residual=True, feed_forward=True),
    'clipsurgery': Variant(clipsurgery, residual=True, feed_forward=False, blocks=6),
    'sclip': Variant(sclip, residual=True, feed_forward=True),
    'clearclip': Variant(clearclip, residual=False, feed_forward=False),
    'naclip': Variant(naclip, residual=False, feed_forward=False),
    'proxyclip': Variant(maskclip, residual=False, feed_forward=False, regroup=proxyclip),
}


def find_variant(spec: str | Mapping[str, Any]) -> Variant:
    """The variant of a name, or of a mapping with ``name`` and changes.

    Args:
        spec: ``'naclip'`` or ``dict(name='naclip', sigma=3.0)``; further keys are ``residual``,
            ``feed_forward``, ``blocks`` and the arguments of the function.
    Raises:
        ValueError: an unknown name or key.
    """
    options: dict[str, Any] = {'name': spec} if isinstance(spec, str) else dict(spec)
    name = options.pop('name', None)
    if name not in VARIANTS:
        raise ValueError(f'attention {name!r} is none of {", ".join(VARIANTS)}')
    variant = VARIANTS[name]
    parts: dict[str, Any] = {
        key: options.pop(key) for key in ('residual', 'feed_forward', 'blocks') if key in options
    }
    if parts.get('blocks', 1) < 1:
        raise ValueError(f'attention {name!r}: blocks must be at least 1, got {parts["blocks"]}')
    changed = 'mix' if variant.regroup is None else 'regroup'
    function = getattr(variant, changed)
    known = [key for key, value in signature(function).parameters.items() if value.default is not value.empty]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f'attention {name!r} does not know {unknown[0]!r}; its numbers are {known}')
    parts[changed] = partial(function, **options)
    return replace(variant, **parts)
