"""Dense towers: every family's own vectors, positions of other grids, windows against plain loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.encoders.dense.patches import TimmVit, find_patch_tower, resized_positions, value_path
from ovd.encoders.dense.tower import ClipDense, build_dense_tower
from ovd.encoders.dense.windows import Windows, cell_weights, window_starts
from ovd.encoders.loading import load_clip

TINY = 'ovd/assets/clip_tiny_shapes'
TEXT = {'context_length': 8, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1}


def write_clip(folder: Path, name: str, vision: dict[str, Any], embed_dim: int = 24) -> Path:
    path = folder / f'{name}.json'
    path.write_text(json.dumps({'embed_dim': embed_dim, 'vision_cfg': vision, 'text_cfg': TEXT}))
    return path


@pytest.fixture(scope='module')
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small architectures of each family: native, map pool of SigLIP, EVA with rotary positions, ConvNeXt."""
    folder = tmp_path_factory.mktemp('clips')
    native = {'image_size': 32, 'patch_size': 8, 'width': 32, 'layers': 2, 'head_width': 16}
    timm = {
        'siglip': ('vit_tiny_patch16_224', 'map', 'none', 224, 192),
        'eva': ('eva02_tiny_patch14_224', 'token', '', 224, 24),
        'convnext': ('test_convnext', '', 'linear', 160, 24),
        'swin': ('swin_tiny_patch4_window7_224', '', 'linear', 224, 24),
    }
    coca = native | {'attentional_pool': True, 'attn_pooler_heads': 2, 'attn_pooler_queries': 4}
    found = {'vit': write_clip(folder, 'vit', native), 'coca': write_clip(folder, 'coca', coca)}
    for name, (model, pool, proj, size, width) in timm.items():
        vision = {'timm_model_name': model, 'timm_pool': pool, 'timm_proj': proj, 'image_size': size}
        found[name] = write_clip(folder, name, vision, width)
    return found


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize('name', ['siglip', 'eva'])
def test_timm_blocks_run_as_they_are_under_plain_attention(clips: dict[str, Path], name: str) -> None:
    """The exchanged attention, told to do what the block does, leaves every token as it was."""
    visual: Any = load_clip(clips[name], 'random:0').model.get_submodule('visual')
    tower = ClipDense(clips[name], 'random:0', attention='plain')
    batch = images(visual.image_size[0], visual.image_size[1], 1)
    found = tower.patches(batch)
    tokens = visual.trunk.forward_features(batch)[:, visual.trunk.num_prefix_tokens :]
    trunk = visual.trunk
    if trunk.attn_pool is not None:
        tokens = torch.stack([trunk.attn_pool(token[:, None]) for token in tokens])
    expected = visual.head(trunk.head(tokens))
    torch.testing.assert_close(found.flatten(2).mT, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('name', ['vit', 'siglip', 'eva', 'convnext', 'coca'])
def test_every_family_answers_at_other_sizes(clips: dict[str, Path], name: str) -> None:
    attention = 'plain' if name == 'convnext' else 'naclip'
    tower = ClipDense(clips[name], 'random:0', attention=attention)
    stride = tower.stride
    found = tower(images(3 * stride, 4 * stride))
    assert found.shape == (2, tower.embed_dim, 3, 4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 3, 4))
    alone = tower(images(3 * stride, 4 * stride)[1:])
    torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_resnet_values_go_through_its_attention_pool() -> None:
    visual: Any = load_clip(TINY).model.get_submodule('visual')
    batch = images(64, 96)
    x = visual.stem(batch)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    expected = visual.attnpool.c_proj(visual.attnpool.v_proj(x.permute(0, 2, 3, 1)))
    found = ClipDense(TINY, attention='maskclip')(batch)
    torch.testing.assert_close(found, F.normalize(expected, dim=-1).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_convolutional_maps_average_to_the_towers_own_vector(clips: dict[str, Path]) -> None:
    """One position is a map of one pixel: a constant map gives what the tower says of it."""
    tower = ClipDense(clips['convnext'], 'random:0', attention='plain')
    visual: Any = tower.visual
    pixel = torch.randn(1, visual.trunk.num_features, 1, 1)
    constant = pixel.expand(-1, -1, 5, 5)
    one, many = (visual.head(visual.trunk.forward_head(maps)) for maps in (pixel, constant))
    torch.testing.assert_close(one, many)


@torch.no_grad()
def test_the_value_path_is_attention_on_one_token() -> None:
    for options in ({}, {'kdim': 6, 'vdim': 6}):
        attention = torch.nn.MultiheadAttention(8, 2, batch_first=True, **options)
        token = torch.randn(3, 1, options.get('kdim', 8))
        expected = attention(torch.randn(3, 1, 8), token, token)[0]
        torch.testing.assert_close(value_path(attention, token), expected)


def test_positions_of_other_grids() -> None:
    table = torch.randn(1 + 4, 3)
    assert resized_positions(table, (2, 2), (2, 2), 1) is table
    constant = torch.cat([torch.zeros(1, 3), torch.full((4, 3), 2.0)])
    found = resized_positions(constant, (2, 2), (3, 5), 1)
    assert found.shape == (16, 3)
    assert not found[0].any()
    torch.testing.assert_close(found[1:], torch.full((15, 3), 2.0))


@torch.no_grad()
def test_the_native_grid_gives_the_towers_own_tokens(clips: dict[str, Path]) -> None:
    visual: Any = load_clip(clips['vit'], 'random:0').model.get_submodule('visual')
    batch = images(32, 32)
    own = visual.ln_post(visual.transformer(visual._embeds(batch)))[:, 1:] @ visual.proj
    found = ClipDense(clips['vit'], 'random:0', attention='plain').patches(batch)
    torch.testing.assert_close(found.flatten(2).mT, own, atol=1e-5, rtol=1e-5)


def toy_embed(squares: Tensor) -> Tensor:
    """Two numbers of a square that tell it from others, unit length."""
    return F.normalize(torch.stack([squares.mean((1, 2, 3)), squares.std((1, 2, 3)) + 1], 1), dim=1)


def plain_windows(image: Tensor, size: int, stride: int, profile: str) -> Tensor:
    """Pixel by pixel: the weighted mean over the windows, then the mean of each cell."""
    height, width = image.shape[1:]
    total, weights = np.zeros((2, height, width)), np.zeros((height, width))
    for top in window_starts(height, size, stride):
        for left in window_starts(width, size, stride):
            vector = toy_embed(image[None, :, top : top + size, left : left + size])[0].numpy()
            for y in range(top, top + size):
                for x in range(left, left + size):
                    inside = ((y + 0.5, top), (x + 0.5, left))
                    reach = [min(p - first, first + size - p) for p, first in inside]
                    weight = 1.0 if profile == 'flat' else reach[0] * reach[1]
                    total[:, y, x] += weight * vector
                    weights[y, x] += weight
    pixels = torch.from_numpy(total / weights)
    rows, columns = -(-height // stride), -(-width // stride)
    return torch.stack(
        [
            torch.stack(
                [
                    pixels[:, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride].mean((1, 2))
                    for x in range(columns)
                ],
                dim=1,
            )
            for y in range(rows)
        ],
        dim=1,
    )


@pytest.mark.parametrize('profile', ['flat', 'triangle'])
@pytest.mark.parametrize(('height', 'width', 'stride'), [(24, 32, 4), (21, 27, 4), (16, 18, 6)])
def test_windows_equal_a_loop_over_pixels(profile: str, height: int, width: int, stride: int) -> None:
    batch = images(height, width)
    for batch_size in (1, 7, 1000):
        windows = Windows(stride, sizes=16, profile=profile, batch_size=batch_size)
        found = windows(batch, toy_embed, 16)
        for image, maps in zip(batch, found):
            expected = plain_windows(image, 16, stride, profile)
            torch.testing.assert_close(maps.double(), expected, atol=1e-5, rtol=1e-5)


def test_windows_of_several_sizes_are_averaged() -> None:
    batch = images(24, 24)
    both = Windows(8, sizes=[16, 24])(batch, toy_embed, 16)
    each = [Windows(8, sizes=size)(batch, toy_embed, 16) for size in (16, 24)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_a_small_image_is_one_window() -> None:
    found = Windows(8, sizes=32)(images(16, 24), toy_embed, 32)
    assert found.shape == (2, 2, 2, 3)
    torch.testing.assert_close(found, found[:, :, :1, :1].expand_as(found))


def test_weights_of_windows_add_up() -> None:
    weights = cell_weights(window_starts(50, 16, 6), 16, 6, 9, 50, 'triangle')
    torch.testing.assert_close(weights.sum(1), torch.ones(9, dtype=torch.float64))


def test_window_vectors_are_those_of_the_tower() -> None:
    tower = ClipDense(TINY, windows={'stride': 64})
    batch = images(64, 128)
    found = tower(batch)
    for column in range(2):
        expected = tower.embed(batch[..., 64 * column : 64 * (column + 1)])
        torch.testing.assert_close(found[..., 0, column], expected, atol=1e-5, rtol=1e-5)


def test_towers_stay_frozen_and_in_eval_mode() -> None:
    tower = ClipDense(TINY, attention='maskclip').train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_proxies(clips: dict[str, Path]) -> None:
    proxy = {'model': 'vit_tiny_patch16_224', 'pretrained': 'random:0'}
    tower = ClipDense(clips['vit'], 'random:0', attention='proxyclip', proxy=proxy)
    assert tower(images(64, 64)).shape == (2, 24, 4, 4)  # the grid of the proxy, not the 8 x 8 of the CLIP
    with pytest.raises(ValueError, match='proxy'):
        ClipDense(clips['vit'], 'random:0', attention='proxyclip')
    with pytest.raises(ValueError, match='naclip'):
        ClipDense(clips['vit'], 'random:0', attention='naclip', proxy=proxy)
    for model, weights, kind in (
        ('resnet18', 'random:0', ValueError),
        ('vit_tiny_patch16_224', 'nowhere.safetensors', FileNotFoundError),
    ):
        proxy = {'model': model, 'pretrained': weights}
        with pytest.raises(kind, match=weights if kind is FileNotFoundError else model):
            ClipDense(clips['vit'], 'random:0', attention='proxyclip', proxy=proxy)


def test_towers_without_patches_are_refused_and_work_with_windows(clips: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match='Swin'):
        ClipDense(clips['swin'], 'random:0')
    with pytest.raises(ValueError, match='plain'):
        ClipDense(clips['convnext'], 'random:0', attention='sclip')
    tower = ClipDense(clips['swin'], 'random:0', windows={'stride': 112})
    assert tower(images(224, 224, 1)).shape == (1, 24, 2, 2)


def test_bad_windows_and_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match='gaps'):
        Windows(32, sizes=16)
    with pytest.raises(ValueError, match='cosine'):
        Windows(8, profile='cosine')
    with pytest.raises(ValueError, match='dino'):
        build_dense_tower({'kind': 'dino', 'model': 'x'})
    assert isinstance(build_dense_tower({'model': TINY, 'attention': 'plain'}), ClipDense)


def test_a_timm_build_without_fused_attention_is_named(clips: dict[str, Path]) -> None:
    tower = ClipDense(clips['siglip'], 'random:0', attention='naclip')
    assert isinstance(find_patch_tower(tower.visual), TimmVit)
    last: Any = tower.visual.trunk.blocks[-1]
    last.attn.fused_attn = False
    try:
        with pytest.raises(RuntimeError, match='TIMM_FUSED_ATTN'):
            tower(images(32, 32))
    finally:
        last.attn.fused_attn = True
