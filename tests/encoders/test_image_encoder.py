"""Encoding images: parity with open_clip, pixel statistics, refusals."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from ovd.encoders.image_encoder import ImageEncoder
from ovd.encoders.loading import build_clip, save_clip
from ovd.encoders.text_encoder import TextEncoder
from tests.toys.clip import RESNET, VIT, write_architecture


def write_folder(folder: Path, vision_cfg: dict[str, Any], **changes: Any) -> Path:
    architecture = write_architecture(folder.parent / 'arch.json', vision_cfg=vision_cfg, **changes)
    clip = build_clip(architecture, 'random:1')
    for module in clip.model.modules():
        if isinstance(module, nn.BatchNorm2d):  # residual branches start at zero
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    save_clip(folder, clip.model, clip.config)
    return folder


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('vision_cfg', [RESNET, VIT], ids=['resnet', 'vit'])
def test_encode_equals_open_clip(tmp_path: Path, vision_cfg: dict[str, Any], channels_last: bool) -> None:
    folder = write_folder(tmp_path / 'clip', vision_cfg, quick_gelu=True)
    peer = open_clip.create_model(f'local-dir:{folder}').eval()
    encoder = ImageEncoder(folder, channels_last=channels_last)
    size = vision_cfg['image_size']
    assert (encoder.image_size, encoder.embed_dim) == (size, 24)
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    normalised = (pixels / 255 - mean) / std
    torch.testing.assert_close(encoder.normalize(pixels), normalised, atol=1e-5, rtol=0)
    with torch.no_grad():
        wanted = peer.encode_image(normalised)
    torch.testing.assert_close(encoder.encode(encoder.normalize(pixels)), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode(normalised[:1]), wanted[:1], atol=1e-5, rtol=1e-4)
    assert encoder.encode(normalised[:0]).shape == (0, 24)


def test_pixel_statistics_by_hand(tmp_path: Path) -> None:
    encoder = ImageEncoder(write_folder(tmp_path / 'clip', VIT))
    assert encoder.mean == (0.48145466, 0.4578275, 0.40821073)
    white = encoder.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist()
    assert white == pytest.approx([1.9303361, 2.0748838, 2.1458970], abs=1e-5)
    assert encoder.normalize(torch.full((1, 3, 2, 2), 127.5)).dtype == torch.float32


def test_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    encoder = ImageEncoder(write_folder(tmp_path / 'clip', RESNET))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    nn.ModuleList([encoder]).train()
    encoder.encode(torch.rand(2, 3, 64, 64))
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=0, rtol=0)


def test_both_towers_share_one_fingerprint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'clip', VIT)
    assert ImageEncoder(folder).fingerprint == TextEncoder(folder).fingerprint


def test_reduced_precision_is_close(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'clip', VIT)
    exact, rough = ImageEncoder(folder), ImageEncoder(folder, dtype='bfloat16')
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert rough.normalize(pixels).dtype == torch.bfloat16
    vectors = rough.encode(rough.normalize(pixels))
    assert vectors.dtype == torch.float32
    assert torch.cosine_similarity(vectors, exact.encode(exact.normalize(pixels))).min() > 0.99


@pytest.mark.parametrize('shape', [(2, 3, 64, 32), (3, 32, 32), (2, 1, 32, 32)])
def test_other_sizes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    encoder = ImageEncoder(write_folder(tmp_path / 'clip', VIT))
    with pytest.raises(ValueError, match=r'expected pixels \[N, 3, 32, 32\], got') as caught:
        encoder.encode(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_images_that_are_no_squares_are_refused(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / 'a.json', vision_cfg=VIT | {'image_size': [32, 64]})
    with pytest.raises(ValueError, match='are 32 x 64 pixels, expected a square'):
        ImageEncoder(path, 'random:0')
