"""CLIP and SigLIP in the layout of transformers: features equal to its own, whole or in shards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ovd.checkpoints.loading import load_tensors
from ovd.checkpoints.shards import load_shards
from ovd.encoders.foreign.transformers_clip import convert, read_config
from ovd.encoders.image_encoder import ImageEncoder
from ovd.encoders.loading import build_clip, load_clip, save_clip
from ovd.encoders.text_encoder import TextEncoder
from tests.toys.clip import write_architecture

transformers = pytest.importorskip('transformers')

TEXT = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
VISION = {
    'hidden_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'image_size': 32,
    'patch_size': 8,
}


def spread(model: nn.Module) -> nn.Module:
    """Weights large enough to tell wrong orders apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def write_clip(folder: Path, text: dict[str, Any], vision: dict[str, Any], shards: bool = False) -> Any:
    """A random CLIP of transformers in a folder."""
    config = transformers.CLIPConfig(
        text_config={**TEXT, 'max_position_embeddings': 20, 'intermediate_size': 96, **text},
        vision_config={**VISION, 'intermediate_size': 96, **vision},
        projection_dim=24,
    )
    model = spread(transformers.CLIPModel(config))
    model.save_pretrained(folder, max_shard_size='200KB' if shards else '1GB')
    return model


def write_siglip(folder: Path, activation: str = 'gelu_pytorch_tanh') -> Any:
    """A random SigLIP of transformers in a folder."""
    shared = {'intermediate_size': 96, 'hidden_act': activation}
    config = transformers.SiglipConfig(
        text_config={**TEXT, **shared, 'hidden_size': 48, 'max_position_embeddings': 12, 'vocab_size': 100},
        vision_config={**VISION, **shared},
    )
    model = spread(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    return model


def features(model: Any, images: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        found = model.get_image_features(pixel_values=images), model.get_text_features(input_ids=token_ids)
    return tuple(getattr(each, 'pooler_output', each) for each in found)  # type: ignore[return-value]


def assert_equal_features(folder: Path, peer: Any, token_ids: Tensor) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = build_clip(folder).model.eval()
    image_features, text_features = features(peer, images, token_ids)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), image_features, atol=1e-6, rtol=0)
        torch.testing.assert_close(model.encode_text(token_ids), text_features, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ('text', 'vision', 'shards'),
    [
        ({}, {}, False),
        ({'hidden_act': 'gelu'}, {'hidden_act': 'gelu'}, True),
        ({'hidden_act': 'gelu_pytorch_tanh'}, {'hidden_act': 'gelu', 'layer_norm_eps': 1e-3}, False),
        ({'eos_token_id': 2, 'layer_norm_eps': 1e-3}, {}, False),
        ({'eos_token_id': 7}, {}, False),
    ],
    ids=['quick_gelu', 'gelu in shards', 'mixed', 'old end token', 'other end token'],
)
def test_clip_gives_the_features_of_transformers(
    tmp_path: Path, text: dict[str, Any], vision: dict[str, Any], shards: bool
) -> None:
    peer = write_clip(tmp_path / 'clip', text, vision, shards)
    assert (tmp_path / 'clip' / 'model.safetensors.index.json').is_file() == shards
    token_ids = torch.tensor([[49406, 320, 7, 49407, 0], [49406, 5, 9, 11, 49407]])
    token_ids = torch.nn.functional.pad(token_ids, (0, 15))
    token_ids[:, -1] = 7  # a second token that ends a text, where the config says so
    assert_equal_features(tmp_path / 'clip', peer, token_ids)


@pytest.mark.parametrize('activation', ['gelu_pytorch_tanh', 'gelu'])
def test_siglip_gives_the_features_of_transformers(tmp_path: Path, activation: str) -> None:
    peer = write_siglip(tmp_path / 'siglip', activation)
    token_ids = torch.randint(0, 100, (3, 12), generator=torch.Generator().manual_seed(2))
    assert_equal_features(tmp_path / 'siglip', peer, token_ids)
    clip = load_clip(tmp_path / 'siglip')
    assert (clip.mean, clip.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_clip(tmp_path / 'saved', clip.model, clip.config)
    assert load_clip(tmp_path / 'saved').fingerprint == clip.fingerprint


def test_encoders_read_the_folder(tmp_path: Path) -> None:
    peer = write_clip(tmp_path / 'clip', {}, {})
    (tmp_path / 'clip' / 'preprocessor_config.json').write_text('{"image_mean": [0.4, 0.5, 0.6]}')
    encoder, images = TextEncoder(tmp_path / 'clip'), ImageEncoder(tmp_path / 'clip')
    assert images.mean == (0.4, 0.5, 0.6)
    pixels = torch.rand(2, 3, 32, 32) * 255
    token_ids = encoder.tokenizer(['a cat', 'two dogs'])
    image_features, text_features = features(peer, images.normalize(pixels), token_ids)
    torch.testing.assert_close(images.encode(pixels=images.normalize(pixels)), image_features)
    torch.testing.assert_close(encoder.encode(['a cat', 'two dogs']), text_features, atol=1e-6, rtol=0)


def test_the_folder_means_the_same_as_one_of_open_clip(tmp_path: Path) -> None:
    """One fingerprint, so vectors of the two can be mixed."""
    write_clip(tmp_path / 'theirs', {}, {})
    clip = build_clip(tmp_path / 'theirs')
    save_clip(tmp_path / 'ours', clip.model, clip.config)
    assert load_clip(tmp_path / 'ours').fingerprint == clip.fingerprint


def test_a_weights_file_of_transformers_loads_into_a_named_architecture(tmp_path: Path) -> None:
    write_clip(tmp_path / 'clip', {}, {})
    clip = build_clip(tmp_path / 'clip')
    (tmp_path / 'arch.json').write_text(json.dumps(clip.config))
    again = build_clip(tmp_path / 'arch.json', tmp_path / 'clip' / 'model.safetensors')
    assert again.fingerprint == clip.fingerprint


def test_sharded_weights_of_open_clip(tmp_path: Path) -> None:
    clip = build_clip(write_architecture(tmp_path / 'a.json'), 'random:1')
    save_clip(tmp_path / 'whole', clip.model, clip.config)
    folder = shutil.copytree(tmp_path / 'whole', tmp_path / 'shards')
    whole = load_tensors(folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_model.safetensors').unlink()
    write_shards(folder, 'open_clip_model', whole)
    assert load_clip(folder).fingerprint == clip.fingerprint
    index = folder / 'open_clip_model.safetensors.index.json'
    assert load_tensors(index).keys() == whole.keys()
    assert build_clip(tmp_path / 'a.json', index).fingerprint == clip.fingerprint
    with pytest.raises(ValueError, match=r'00001-of-00002\.safetensors is one of several shards'):
        load_clip(tmp_path / 'a.json', folder / 'open_clip_model-00001-of-00002.safetensors')
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r'2 shards .* no index'):
        load_clip(folder)


def write_shards(folder: Path, stem: str, tensors: dict[str, Tensor]) -> None:
    """Two shards and their index."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    for number, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        name = f'{stem}-0000{number}-of-00002.safetensors'
        save_file({key: tensors[key].clone() for key in keys}, folder / name)
        places |= dict.fromkeys(keys, name)
    (folder / f'{stem}.safetensors.index.json').write_text(json.dumps({'weight_map': places}))


@pytest.mark.parametrize('shards', [False, True])
def test_a_repository_of_the_hub_in_the_layout_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: bool
) -> None:
    hub = tmp_path / 'clip'
    write_clip(hub, {'hidden_act': 'gelu'}, {'hidden_act': 'gelu'}, shards)
    asked: list[str] = []

    def from_hub(repository: str, names: list[str]) -> str:
        asked.append(repository)
        found = [hub / name for name in names if (hub / name).is_file()]
        if not found:
            raise FileNotFoundError(f'{repository} holds none of {names}')
        return str(found[0])

    monkeypatch.setattr('ovd.encoders.sources._from_hub', from_hub)
    clip = build_clip('hf-hub:someone/clip')
    assert clip.fingerprint == build_clip(hub).fingerprint
    assert clip.may_fetch
    assert set(asked) == {'someone/clip'}


@pytest.mark.parametrize(
    ('index', 'error', 'message'),
    [
        ('{', ValueError, 'cannot be read'),
        ('[]', ValueError, "no 'weight_map'"),
        ('{"weight_map": {"a": "../a.safetensors"}}', ValueError, r"'a' lies in '\.\./a"),
        ('{"weight_map": {"a": 3}}', ValueError, "'a' lies in 3"),
        ('{"weight_map": {"a": "b.safetensors"}}', FileNotFoundError, r'b\.safetensors'),
        ('{"weight_map": {"b": "a.safetensors"}}', ValueError, "does not hold 'b'"),
    ],
)
def test_bad_indices_are_refused(tmp_path: Path, index: str, error: type[Exception], message: str) -> None:
    from safetensors.torch import save_file

    save_file({'a': torch.zeros(1)}, tmp_path / 'a.safetensors')
    (tmp_path / 'm.index.json').write_text(index)
    with pytest.raises(error, match=message) as caught:
        load_shards(tmp_path / 'm.index.json')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'model_type': 'bert'}, "type 'bert'"),
        ({'model_type': 'clip', 'text_config': 3}, 'text_config is 3'),
        ({'model_type': 'clip', 'text_config': {'hidden_size': 'wide'}}, "hidden_size is 'wide'"),
        ({'model_type': 'clip', 'text_config': {'hidden_act': 'relu'}}, "hidden_act 'relu'"),
        ({'model_type': 'clip', 'text_config': {'hidden_act': 'gelu'}}, "'gelu' and 'quick_gelu'"),
        ({'model_type': 'clip', 'vision_config': {'hidden_size': 7}}, 'no multiple'),
        ({'model_type': 'siglip', 'text_config': {'hidden_size': 96}}, 'ends in width 96'),
    ],
)
def test_other_configurations_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(content, {}, 'config.json')


def test_missing_and_surplus_weights_are_named(tmp_path: Path) -> None:
    write_clip(tmp_path / 'clip', {}, {})
    tensors = load_tensors(tmp_path / 'clip' / 'model.safetensors')
    assert 'something.else' in convert({**tensors, 'something.else': torch.zeros(1)})
    del tensors['text_model.encoder.layers.1.self_attn.k_proj.bias']
    with pytest.raises(ValueError, match=r'layers\.1\.self_attn is not complete'):
        convert(tensors)
