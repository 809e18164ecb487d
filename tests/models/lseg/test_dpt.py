"""Image nets: tokens against timm and open_clip, position tables, weights, pyramids, the fusion decoder."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from safetensors.torch import save_file

from ovd.encoders.loading import build_clip
from ovd.models.lseg.dpt import DPTFusion, DPTViT, ProjectReadout, Reassemble, ResNetPyramid
from ovd.models.vit_tokens import ClipViT, TimmViT, VitTokens
from ovd.registry import MODELS
from tests.toys.clip import VIT, write_architecture
from tests.toys.lseg import vit

CHANNELS = (8, 16, 24, 32)


def timm_vit(**options: Any) -> TimmViT:
    config = vit(**options)
    return TimmViT(config['model'], config['options'])


def pyramid(hooks: tuple[int, ...] = (0, 1, 2, 3), init_cfg: Any = None, **options: Any) -> DPTViT:
    init_default_scope('mmseg')
    return MODELS.build(
        {
            'type': 'ovd.DPTViT',
            'vit': vit(**options),
            'hooks': hooks,
            'channels': CHANNELS,
            'init_cfg': init_cfg,
        }
    )


# tokens ------------------------------------------------------------------


@pytest.mark.parametrize('size', [64, (96, 64)])
@torch.no_grad()
def test_tokens_are_those_of_timm(size: Any) -> None:
    ours = timm_vit().eval()
    peer = timm.create_model('vit_base_patch16_224', num_classes=0, **vit()['options']).eval()
    peer.load_state_dict(ours.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    tokens, grid = ours(images, (1, 3))
    _, expected = peer.forward_intermediates(images, [1, 3], output_fmt='NLC', return_prefix_tokens=True)
    assert grid == (4, 4)
    for found, (patches, prefix) in zip(tokens, expected):
        torch.testing.assert_close(found, torch.cat([prefix, patches], 1))


@pytest.mark.parametrize(
    'model', ['vit_small_patch14_reg4_dinov2', 'deit3_small_patch16_224', 'vit_base_patch16_clip_224']
)
@torch.no_grad()
def test_registers_unplaced_class_tokens_and_pre_norm(model: str) -> None:
    options = {'embed_dim': 32, 'depth': 2, 'num_heads': 2, 'img_size': 56 if '14' in model else 64}
    ours = TimmViT(model, options).eval()
    peer = timm.create_model(model, num_classes=0, **options).eval()
    peer.load_state_dict(ours.state_dict(), strict=False)
    images = torch.randn(1, 3, options['img_size'], options['img_size'])
    (tokens,), _ = ours(images, (1,))
    ((patches, prefix),) = peer.forward_intermediates(
        images, [1], output_fmt='NLC', return_prefix_tokens=True, intermediates_only=True
    )
    torch.testing.assert_close(tokens, torch.cat([prefix, patches], 1))


@torch.no_grad()
def test_tokens_of_a_clip_are_those_of_open_clip(tmp_path: Path) -> None:
    tower = str(write_architecture(tmp_path / 'clip.json', vision_cfg={**VIT, 'layers': 3, 'image_size': 64}))
    ours = ClipViT(tower, 'random:2').eval()
    visual = build_clip(tower, 'random:2').model.visual.eval()
    images = torch.randn(2, 3, 64, 64)
    tokens, grid = ours(images, (0, 2))
    expected = visual.forward_intermediates(images, [0, 2], output_fmt='NLC', output_extra_tokens=True)
    assert grid == (4, 4)
    parts = zip(expected['image_intermediates_prefix'], expected['image_intermediates'])
    for found, both in zip(tokens, parts):
        torch.testing.assert_close(found, torch.cat(both, 1))
    assert torch.equal(ours.positional_embedding, visual.positional_embedding)


def test_a_clip_without_a_vit_is_refused(tmp_path: Path) -> None:
    tower = str(write_architecture(tmp_path / 'clip.json'))
    with pytest.raises(ValueError, match='ModifiedResNet'):
        ClipViT(tower, 'random:0')
    with pytest.raises(ValueError, match='swin_tiny_patch4_window7_224'):
        TimmViT('swin_tiny_patch4_window7_224')


@torch.no_grad()
def test_two_models_do_not_share_what_their_hooks_see() -> None:
    one, two = pyramid().eval(), pyramid(hooks=(0, 1, 2, 3)).eval()
    images = torch.randn(1, 3, 64, 64)
    before = one(images)
    two(torch.randn(2, 3, 32, 64))
    for level, again in zip(before, one(images)):
        assert torch.equal(level, again)


def test_blocks_after_the_last_hook_are_dropped() -> None:
    backbone = pyramid(hooks=(0, 1, 2, 3), depth=6)
    assert len(backbone.vit.blocks) == 4
    names = [name for name, _ in backbone.vit.named_parameters()]
    assert not any(name.startswith(('norm.', 'head', 'fc_norm')) for name in names)
    for wrong in ((0, 1, 2, 6), (3, 2, 1, 0), (0, 0, 1, 2), (-1, 0, 1, 2)):
        with pytest.raises(ValueError, match='0 to 5'):
            pyramid(hooks=wrong, depth=6)
    with pytest.raises(ValueError, match=r'\[0, 1\]'):
        pyramid(hooks=(0, 1))


# position table ----------------------------------------------------------


def by_hand(table: torch.Tensor, side: int, grid: tuple[int, int]) -> torch.Tensor:
    """Bilinear, corners not aligned, no filter: one position at a time."""
    patches = table[0, 1:].view(side, side, -1)
    rows = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            value = 0
            v = min(max((y + 0.5) * side / grid[0] - 0.5, 0), side - 1)
            u = min(max((x + 0.5) * side / grid[1] - 0.5, 0), side - 1)
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = abs(1 - dy - (v - int(v))) * abs(1 - dx - (u - int(u)))
                    value = value + weight * patches[min(int(v) + dy, side - 1), min(int(u) + dx, side - 1)]
            rows.append(value)
    return torch.cat([table[:, :1], torch.stack(rows)[None]], 1)


@pytest.mark.parametrize('grid', [(4, 4), (2, 3), (7, 5), (1, 9)])
def test_position_table_of_other_grids(grid: tuple[int, int]) -> None:
    model = timm_vit()
    table = model.position_table(model.pos_embed, grid, 1)
    torch.testing.assert_close(table, by_hand(model.pos_embed, 4, grid))
    table.square().sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


def test_position_tables_are_kept_in_evaluation_and_never_stale() -> None:
    model = timm_vit().eval()
    with torch.no_grad():
        first = model.position_table(model.pos_embed, (3, 5), 1)
        assert model.position_table(model.pos_embed, (3, 5), 1) is first
        model.pos_embed.mul_(2)
        torch.testing.assert_close(model.position_table(model.pos_embed, (3, 5), 1), 2 * first)
        model.pos_embed.data.mul_(2)  # as moving averages swap weights: unseen by the version counter
        model.eval()
        torch.testing.assert_close(model.position_table(model.pos_embed, (3, 5), 1), 4 * first)
        for width in range(1, 30):
            model.position_table(model.pos_embed, (1, width), 1)
        assert len(model._tables) <= 8
    with torch.inference_mode():
        model.position_table(model.pos_embed, (3, 5), 1)
    assert model.position_table(model.pos_embed, (3, 5), 1).requires_grad


def test_position_resize_is_an_option() -> None:
    config = vit()
    cubic = TimmViT(config['model'], config['options'], position_resize='bicubic', antialias=True)
    table = cubic.position_table(cubic.pos_embed, (2, 3), 1)
    patches = cubic.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    expected = F.interpolate(patches, (2, 3), mode='bicubic', antialias=True).flatten(2).mT
    torch.testing.assert_close(table[:, 1:], expected)
    with pytest.raises(ValueError, match='position_resize'):
        TimmViT(config['model'], config['options'], position_resize='nearest')


# weights -----------------------------------------------------------------


def test_weights_come_from_a_file_when_training_starts(tmp_path: Path) -> None:
    full = timm.create_model('vit_base_patch16_224', num_classes=5, **vit(depth=6)['options'])
    path = tmp_path / 'vit.safetensors'
    save_file(full.state_dict(), path)
    backbone = pyramid(depth=6, init_cfg={'type': 'Pretrained', 'checkpoint': str(path)})
    assert not torch.equal(backbone.vit.cls_token, full.cls_token)
    backbone.init_weights()
    for name, value in backbone.vit.state_dict().items():
        assert torch.equal(value, full.state_dict()[name])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'vit.safetensors'
    for change, message in (({'side': 3}, r'pos_embed \(1, 10, 32\)'), ({'depth': 3}, r'missing: blocks\.3')):
        other = timm.create_model('vit_base_patch16_224', num_classes=5, **vit(**change)['options'])
        save_file(other.state_dict(), path)
        with pytest.raises(ValueError, match=message):
            pyramid(init_cfg={'type': 'Pretrained', 'checkpoint': str(path)}).init_weights()
    missing = str(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        pyramid(init_cfg={'type': 'Pretrained', 'checkpoint': missing}).init_weights()


def test_a_model_that_timm_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"'resnet10i'.*'resnet101'"):
        ResNetPyramid('resnet10i')
    with pytest.raises(ValueError, match=r"'vit_large_patch16_385'.*'vit_large"):
        TimmViT('vit_large_patch16_385')


def test_a_release_that_cannot_be_had_offline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)  # no second and third try
    backbone = pyramid(init_cfg={'type': 'Pretrained', 'checkpoint': 'timm:augreg_in21k'})
    with pytest.raises(FileNotFoundError, match='augreg_in21k'):
        backbone.init_weights()


def test_clip_weights_come_from_the_clip_alone(tmp_path: Path) -> None:
    tower = str(write_architecture(tmp_path / 'clip.json', vision_cfg={**VIT, 'layers': 4}))
    backbone = DPTViT(
        {'type': 'ovd.ClipViT', 'model': tower, 'pretrained': 'random:0'},
        (0, 1, 2, 3),
        CHANNELS,
        init_cfg={'type': 'Pretrained', 'checkpoint': 'x.pth'},
    )
    with pytest.raises(ValueError, match=r'x\.pth'):
        backbone.init_weights()


def test_convolutional_weights_of_torchvision_load(tmp_path: Path) -> None:
    import torchvision

    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / 'resnet18.pth')
    ours = ResNetPyramid(
        'resnet18', init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'resnet18.pth')}
    )
    ours.init_weights()
    ours.eval()
    theirs.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for index, level in enumerate(ours(images)):
            stem = getattr(theirs, f'layer{index + 1}')(stem)
            torch.testing.assert_close(level, stem)
    assert ours.channels == (64, 128, 256, 512)
    with pytest.raises(ValueError, match='strides'):
        ResNetPyramid('resnet18', {'output_stride': 8})


# pyramid -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('patch', 'divisor', 'sizes'),
    [
        (16, 32, [(16, 24), (8, 12), (4, 6), (2, 3)]),
        (32, 32, [(16, 24), (8, 12), (4, 6), (2, 3)]),
        (8, 32, [(16, 24), (8, 12), (4, 6), (2, 3)]),
        (14, 28, [(16, 24), (8, 12), (4, 6), (2, 3)]),
    ],
)
def test_levels_have_strides_4_to_32(patch: int, divisor: int, sizes: list[tuple[int, int]]) -> None:
    backbone = pyramid(patch=patch)
    assert backbone.size_divisor == divisor
    levels = backbone(torch.randn(1, 3, 2 * divisor, 3 * divisor))
    assert [tuple(level.shape[2:]) for level in levels] == sizes
    assert [level.shape[1] for level in levels] == list(CHANNELS)


def test_readout_joins_every_patch_with_the_class_token() -> None:
    readout = ProjectReadout(6)
    class_token, patches = torch.randn(2, 6), torch.randn(2, 5, 6)
    joined = torch.cat([patches, class_token[:, None].expand(-1, 5, -1)], -1)
    torch.testing.assert_close(readout(class_token, patches), F.gelu(readout.project(joined)))
    with pytest.raises(ValueError, match='readout'):
        DPTViT(vit(), (0, 1, 2, 3), CHANNELS, readout='mean')


def test_reassemble_layers() -> None:
    kinds = {4: (torch.nn.ConvTranspose2d, 4), 8: (torch.nn.ConvTranspose2d, 8), 0.5: (torch.nn.Conv2d, 2)}
    for scale, (kind, stride) in kinds.items():
        resample = Reassemble(6, 4, scale).resample
        assert type(resample) is kind
        assert resample.stride == (stride, stride)
        assert resample.bias is not None
    assert isinstance(Reassemble(6, 4, 1).resample, torch.nn.Identity)


# fusion ------------------------------------------------------------------


def levels_of(sizes: tuple[int, ...] = (16, 8, 4, 2)) -> list[torch.Tensor]:
    return [torch.randn(2, width, side, 2 * side) for width, side in zip(CHANNELS, sizes)]


def residual(unit: Any, x: torch.Tensor) -> torch.Tensor:
    return x + unit.norm2(unit.conv2(unit.norm1(unit.conv1(x.relu())).relu()))


@pytest.mark.parametrize('norm_cfg', [{'type': 'BN'}, None])
def test_fusion_in_the_order_of_the_paper(norm_cfg: Any) -> None:
    """The 1 x 1 convolution after the interpolation, as the released code has it."""
    neck = DPTFusion(CHANNELS, 6, norm_cfg).eval()
    levels = levels_of()
    path = None
    for index in (3, 2, 1, 0):
        block, lateral = neck.fusion[index], F.conv2d(levels[index], neck.lateral[index].weight, padding=1)
        path = lateral if path is None else path + residual(block.refine_lateral, lateral)
        path = residual(block.refine, path)
        path = F.interpolate(path, scale_factor=2, mode='bilinear', align_corners=True)
        path = block.project(path)
    torch.testing.assert_close(neck(levels), path, atol=1e-5, rtol=1e-5)
    assert path.shape == (2, 6, 32, 64)
    assert neck.fusion[3].refine_lateral is None
    assert (neck.fusion[0].refine.conv1.bias is None) == (norm_cfg is not None)


def test_levels_that_do_not_halve_are_refused() -> None:
    neck = DPTFusion(CHANNELS, 6)
    with pytest.raises(RuntimeError, match='size'):
        neck(levels_of((16, 8, 4, 3)))
    with pytest.raises(ValueError, match='zip'):
        neck(levels_of()[:3])


def test_the_base_class_of_tokens_is_abstract() -> None:
    with pytest.raises(NotImplementedError):
        VitTokens()(torch.zeros(1, 3, 8, 8), (0,))
