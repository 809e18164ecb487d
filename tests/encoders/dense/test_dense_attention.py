"""Attention variants against plain loops over heads and patches, and what remains of the last block."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.encoders.dense.attention import (
    VARIANTS,
    Heads,
    clearclip,
    clipsurgery,
    find_variant,
    gaussian_neighbours,
    maskclip,
    naclip,
    plain,
    proxyclip,
    sclip,
)
from ovd.encoders.dense.tower import ClipDense
from ovd.encoders.loading import load_clip

GRID = (2, 3)


def toy_heads() -> Heads:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 7, 4, generator=generator) for _ in range(3))
    return Heads(query, key, value, 0.5, 1, GRID)


def loop(heads: Heads, left: Tensor, right: Tensor, bias: Any = None) -> Tensor:
    """softmax(scale left . right + bias) of one token after the other, times the values."""
    found = torch.zeros_like(heads.value)
    for image in range(len(left)):
        for head in range(left.shape[1]):
            for i in range(left.shape[2]):
                logits = [
                    heads.scale * float(left[image, head, i] @ right[image, head, j])
                    + (0.0 if bias is None else bias(i, j))
                    for j in range(left.shape[2])
                ]
                total = sum(math.exp(x) for x in logits)
                for j, x in enumerate(logits):
                    found[image, head, i] += math.exp(x) / total * heads.value[image, head, j]
    return found


def near(i: int, j: int, sigma: float = 5.0) -> float:
    """The Gaussian of two patches on the toy grid; 0 where one of them is the class token."""
    if min(i, j) == 0:
        return 0.0
    (a, b), (c, d) = divmod(i - 1, GRID[1]), divmod(j - 1, GRID[1])
    return math.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * sigma**2))


def test_variants_equal_plain_loops() -> None:
    heads = toy_heads()
    query, key, value = heads.query, heads.key, heads.value
    torch.testing.assert_close(plain(heads), loop(heads, query, key))
    torch.testing.assert_close(clipsurgery(heads), loop(heads, value, value))
    torch.testing.assert_close(sclip(heads), loop(heads, query, query) + loop(heads, key, key))
    torch.testing.assert_close(clearclip(heads), loop(heads, query, query))
    torch.testing.assert_close(naclip(heads), loop(heads, key, key, near))
    torch.testing.assert_close(naclip(heads, sigma=1.0), loop(heads, key, key, lambda i, j: near(i, j, 1.0)))
    assert maskclip(heads) is heads.value


def test_the_gaussian_of_a_grid() -> None:
    found = gaussian_neighbours((2, 3), 2.0)
    assert found.shape == (6, 6)
    assert found[0, 0] == 1
    assert float(found[0, 5]) == pytest.approx(math.exp(-(1 + 4) / 8))  # one row and two columns away


@pytest.mark.parametrize('proxy_grid', [GRID, (4, 4)])
def test_proxyclip_equals_a_plain_loop(proxy_grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1, 5, *GRID, generator=generator)
    proxy = F.normalize(torch.randn(1, 3, *proxy_grid, generator=generator) + 0.7, dim=1)
    found = proxyclip(values, proxy, beta=1.1, gamma=2.0)
    resized = F.interpolate(values, proxy_grid, mode='bilinear', align_corners=False)[0].flatten(1)
    features = proxy[0].flatten(1)
    cosines = features.T @ features
    for i in range(cosines.shape[0]):
        weights = torch.zeros(len(cosines))
        for j in range(len(cosines)):
            similar = 2.0 * (cosines[i, j] - 1.1 * cosines.mean())
            weights[j] = similar.exp() if similar >= 0 or i == j else 0.0
        expected = (resized * weights).sum(1) / weights.sum()
        torch.testing.assert_close(found[0].flatten(1)[:, i], expected)


def test_a_uniform_proxy_leaves_the_values_alone() -> None:
    values = torch.randn(1, 5, *GRID)
    proxy = F.normalize(torch.ones(1, 3, *GRID), dim=1)  # no similarity lies above 1.2 times the mean
    torch.testing.assert_close(proxyclip(values, proxy), values)


def test_numbers_of_a_variant_are_settings() -> None:
    heads = toy_heads()
    changed = find_variant({'name': 'naclip', 'sigma': 1.0, 'residual': True})
    torch.testing.assert_close(changed.mix(heads), naclip(heads, sigma=1.0))
    assert changed.residual
    assert not VARIANTS['naclip'].residual


@pytest.mark.parametrize(
    ('spec', 'named'),
    [
        ('lposs', 'lposs'),
        ({'name': 'naclip', 'std': 5}, 'std'),
        ({'name': 'clipsurgery', 'blocks': 0}, '0'),
        ({'sigma': 3}, 'None'),
    ],
)
def test_unknown_variants_are_refused(spec: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        find_variant(spec)


@pytest.fixture(scope='module')
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture file of open_clip's own transformer: 32 pixels, patches of 8, 3 blocks."""
    path = tmp_path_factory.mktemp('clip') / 'tiny_vit.json'
    vision = {'image_size': 32, 'patch_size': 8, 'width': 32, 'layers': 3, 'head_width': 16}
    text = {'context_length': 8, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1}
    path.write_text(json.dumps({'embed_dim': 24, 'vision_cfg': vision, 'text_cfg': text}))
    return path


def tokens_before_last(visual: Any, images: Tensor) -> Tensor:
    x = visual._embeds(images)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x


def project(visual: Any, tokens: Tensor) -> Tensor:
    """Patch tokens -> unit vectors [B, D, 4, 4]."""
    joint = visual.ln_post(tokens[:, 1:]) @ visual.proj
    return F.normalize(joint, dim=-1).mT.unflatten(2, (4, 4))


@torch.no_grad()
def test_what_remains_of_the_last_block(tiny_vit: Path) -> None:
    """Each method's own wiring, written out for torch's multi-head attention."""
    visual: Any = load_clip(tiny_vit, 'random:0').model.get_submodule('visual')
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = tokens_before_last(visual, images)
    block = visual.transformer.resblocks[-1]
    attention, normed = block.attn, block.ln_1(x)
    projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.unflatten(2, (2, 16)).transpose(1, 2) for part in projected.chunk(3, -1))

    def out(mixed: Tensor) -> Tensor:
        return attention.out_proj(mixed.transpose(1, 2).flatten(2))

    def soft(left: Tensor, right: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        return (left @ right.mT / 4 + bias).softmax(-1)

    def with_mlp(tokens: Tensor) -> Tensor:
        return tokens + block.mlp(block.ln_2(tokens))

    gaussian = F.pad(gaussian_neighbours((4, 4), 5.0), (1, 0, 1, 0))
    expected = {
        'plain': block(x),
        'maskclip': with_mlp(x + out(v)),
        'sclip': with_mlp(x + out((soft(q, q) + soft(k, k)) @ v)),
        'clearclip': out(soft(q, q) @ v),
        'naclip': out(soft(k, k, gaussian) @ v),
    }
    for name, tokens in expected.items():
        found = ClipDense(tiny_vit, 'random:0', attention=name)(images)
        torch.testing.assert_close(found, project(visual, tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_clip_surgery_sums_a_second_path(tiny_vit: Path) -> None:
    visual: Any = load_clip(tiny_vit, 'random:0').model.get_submodule('visual')
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    x = visual._embeds(images)
    blocks = visual.transformer.resblocks
    x = blocks[0](x)
    path = x
    for block in blocks[1:]:
        attention, normed = block.attn, block.ln_1(x)
        value = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)[2]
        v = value.unflatten(2, (2, 16)).transpose(1, 2)
        mixed = (v @ v.mT / 4).softmax(-1) @ v
        path = path + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = block(x)
    tower = ClipDense(tiny_vit, 'random:0', attention={'name': 'clipsurgery', 'blocks': 2})
    torch.testing.assert_close(tower(images), project(visual, path), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match='6 blocks'):
        ClipDense(tiny_vit, 'random:0', attention='clipsurgery')(images)
