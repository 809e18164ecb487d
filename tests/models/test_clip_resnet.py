"""CLIP's convolutional tower as a pyramid: the same maths as open_clip's, frozen where it should be."""

from pathlib import Path

import pytest
import torch

from ovd.encoders.loading import build_clip
from ovd.models.clip_resnet import ClipResNet
from tests.helpers import ROOT
from tests.toys.clip import VIT, write_architecture

TINY = str(ROOT / 'ovd/assets/clip_tiny_shapes')


def test_last_stage_is_what_the_clip_pools() -> None:
    visual = build_clip(TINY).model.visual.eval()
    backbone = ClipResNet(TINY).eval()
    images = torch.randn(2, 3, 64, 64)
    levels = backbone(images)
    assert [level.shape[1:] for level in levels] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert backbone.channels == (64, 128, 256, 512)
    torch.testing.assert_close(visual.attnpool(levels[-1]), visual(images), atol=1e-5, rtol=1e-5)


def test_stages_after_the_last_one_asked_for_do_not_exist() -> None:
    backbone = ClipResNet(TINY, out_indices=(1,))
    assert backbone.size_divisor == 8
    assert [tuple(level.shape) for level in backbone(torch.randn(1, 3, 40, 24))] == [(1, 128, 5, 3)]
    assert not any('layer3' in name or 'attnpool' in name for name in backbone.state_dict())


def test_frozen_stages_stay_as_they_are() -> None:
    backbone = ClipResNet(TINY, out_indices=(0, 1), frozen_stages=1).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(level.square().sum() for level in backbone(torch.randn(4, 3, 32, 32))).backward()
    optimizer.step()
    changed = {name for name, value in backbone.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert all(name.startswith('tower.layer2') for name in changed)
    assert any('running_mean' in name for name in changed)


def test_a_transformer_is_refused(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / 'vit.json', vision_cfg=VIT)
    with pytest.raises(ValueError, match='ResNet'):
        ClipResNet(str(path), 'random:0')


@pytest.mark.parametrize('options', [{'out_indices': (0, 4)}, {'out_indices': (2, 1)}])
def test_stages_that_do_not_exist_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match='out_indices'):
        ClipResNet(TINY, **options)
