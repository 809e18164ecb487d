"""GroupViT's weights in the layouts of the authors and of transformers, and transformers as a peer."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.checkpoints.loading import load_into, load_metadata, load_tensors
from ovd.conversion.groupvit import convert_groupvit, export_groupvit, transformers_config
from ovd.layers.cosine_classifier import l2_normalize
from ovd.models.groupvit.segmentor import GroupViT
from ovd.registry import MODELS
from tests.toys.groupvit import toy_config, toy_groupvit
from tools.convert_checkpoint import main

SQUARE = {'num_group_tokens': (6, 3, 0), 'num_output_groups': (6, 3)}
WIDE = {
    'dims': (16, 24, 24),
    'num_heads': (2, 3, 3),
    'num_group_tokens': (7, 5, 0),
    'num_output_groups': (4, 3),
}


def numbered(model: GroupViT) -> dict[str, Tensor]:
    """Every tensor different from all others, so that nothing can be mixed up."""
    state = model.state_dict()
    for index, (key, value) in enumerate(state.items()):
        state[key] = torch.full_like(value, index) + torch.arange(value.numel()).view_as(value) / 1e5
    return state


@pytest.mark.parametrize('stages', [SQUARE, WIDE], ids=['one width', 'several widths'])
def test_there_and_back_through_the_layout_of_the_authors(stages: dict[str, Any]) -> None:
    ours = numbered(toy_groupvit(image_encoder=stages, multi_label={}))
    exported = export_groupvit(ours, 'nvlabs')
    assert not exported.unmatched
    assert len(exported.tensors) == len(ours)
    width = 'group_projector.1.weight' if stages is WIDE else 'group_projector.1.fc1.weight'
    assert f'img_encoder.layers.1.{width}' in exported.tensors
    assert exported.tensors['img_projector.linear_out.weight'].dim() == 3
    wrapped = {f'module.{key}': value for key, value in exported.tensors.items()}
    back = convert_groupvit(wrapped)
    assert not back.unmatched
    assert set(back.tensors) == set(ours)
    for key, value in ours.items():
        assert torch.equal(back.tensors[key], value), key


def test_there_and_back_through_the_layout_of_transformers() -> None:
    ours = numbered(toy_groupvit(image_encoder=SQUARE, multi_label={}))
    exported = export_groupvit(ours, 'transformers')
    assert exported.stripped == ['multi_label_logit_scale']
    assert not exported.unmatched
    back = convert_groupvit(exported.tensors)
    assert set(back.tensors) == set(ours) - {'multi_label_logit_scale'}
    for key, value in back.tensors.items():
        assert torch.equal(ours[key], value), key


def test_every_key_is_accounted_for() -> None:
    theirs = export_groupvit(toy_groupvit().state_dict(), 'transformers').tensors
    theirs['text_model.embeddings.position_ids'] = torch.arange(20)[None]
    theirs['vision_model.something_else'] = torch.zeros(1)
    converted = convert_groupvit(theirs)
    assert converted.stripped == ['text_model.embeddings.position_ids']
    assert converted.unmatched == ['vision_model.something_else']
    del theirs['text_model.encoder.layers.0.self_attn.k_proj.weight']
    with pytest.raises(ValueError, match=r'text_encoder\S+\.0'):
        convert_groupvit(theirs)
    with pytest.raises(ValueError, match=r"GroupViT checkpoint.*'visual\.proj'"):
        convert_groupvit({'visual.proj': torch.zeros(1)})
    with pytest.raises(ValueError):
        export_groupvit(toy_groupvit(image_encoder=WIDE).state_dict(), 'transformers')
    other = toy_groupvit().state_dict() | {
        'image_encoder.stem.weight': torch.zeros(1),
        'background': torch.zeros(8),
    }
    for layout in ('nvlabs', 'transformers'):
        with pytest.raises(ValueError, match=r'1.*image_encoder\.stem'):
            export_groupvit(other, layout)
    with pytest.raises(ValueError, match="'timm'"):
        export_groupvit({}, 'timm')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'image_encoder': WIDE}, r'\(16.*24.*24\)'),
        ({'image_encoder': {'num_group_tokens': (6, 4, 0)}}, 'num_group_tokens'),
        ({'image_encoder': {'grouping': {'cross_ratio': 2.0}}}, r'cross_ratio.*mlp_ratio'),
        ({'image_encoder': {'positions': 'fourier'}}, 'fourier'),
    ],
)
def test_models_that_transformers_does_not_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformers_config(toy_config(**changes))


# --- the tool -------------------------------------------------------------------------------------------


def write_config(folder: Path, **changes: Any) -> str:
    path = folder / 'toy.py'
    path.write_text(f"default_scope = 'mmseg'\nmodel = {toy_config(**changes)!r}\n")
    return str(path)


def save_released(path: Path, state: dict[str, Tensor]) -> None:
    """A file as the authors' code writes it, with the object of a configuration inside."""
    modules = [ModuleType(name) for name in ('omegaconf', 'omegaconf.dictconfig')]
    kind = type('DictConfig', (), {'__module__': 'omegaconf.dictconfig'})
    modules[1].__dict__['DictConfig'] = kind
    config = kind()
    config.content = {'data': {'batch_size': 256}}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        torch.save({'model': state, 'epoch': 29, 'config': config, 'metrics': {'mIoU': 52.3}}, path)
    finally:
        for module in modules:
            del sys.modules[module.__name__]


def test_released_file_through_the_tool_and_back(tmp_path: Path, capsys: Any) -> None:
    ours = toy_groupvit(multi_label={}).state_dict()
    theirs = export_groupvit(ours, 'nvlabs').tensors
    source, out = tmp_path / 'released.pth', tmp_path / 'ours.safetensors'
    save_released(source, theirs | {'img_encoder.extra': torch.zeros(1)})
    config = write_config(tmp_path, multi_label={})
    main(['--from', 'groupvit', str(source), str(out), '--config', config])
    report = capsys.readouterr().out
    assert 'no counterpart: img_encoder.extra' in report
    assert load_metadata(out)['converted_from'] == 'GroupViT'
    assert load_into(toy_groupvit(multi_label={}), load_tensors(out)).is_complete

    main(['--to', 'nvlabs', str(out), str(tmp_path / 'back.pth'), '--config', config])
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['model']
    assert set(back) == set(theirs)
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)

    exported = tmp_path / 'exported' / 'model.safetensors'
    main(['--to', 'transformers', str(out), str(exported), '--config', config])
    assert 'no place in the layout of transformers: multi_label_logit_scale' in capsys.readouterr().out
    assert json.loads((exported.parent / 'config.json').read_text())['model_type'] == 'groupvit'


def test_the_tool_refuses_what_does_not_fit(tmp_path: Path) -> None:
    theirs = export_groupvit(toy_groupvit().state_dict(), 'nvlabs').tensors
    source, out = tmp_path / 'released.pth', tmp_path / 'ours.safetensors'
    torch.save({'model': theirs}, source)
    with pytest.raises(ValueError, match=r'model.*multi_label_logit_scale'):
        main(
            ['--from', 'groupvit', str(source), str(out), '--config', write_config(tmp_path, multi_label={})]
        )
    assert not out.exists()
    with pytest.raises(ValueError, match=r'\.pth'):
        main(['--to', 'nvlabs', str(source), str(out)])


# --- transformers as a peer -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def transformers() -> Any:
    return pytest.importorskip('transformers', reason='the peer of this test is not installed')


def peer_of(transformers: Any, config: dict[str, Any]) -> Any:
    """transformers' model of a configuration, with random weights: its own initial tokens are zero."""
    options = transformers_config(config)
    peer = transformers.GroupViTModel(
        transformers.GroupViTConfig(
            text_config=options['text_config'],
            vision_config=options['vision_config'],
            projection_dim=options['projection_dim'],
            projection_intermediate_dim=options['projection_intermediate_dim'],
        )
    ).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in peer.state_dict().items():
            if tensor.is_floating_point() and tensor.dim():
                values = torch.randn(tensor.shape, generator=random)
                scale = (0.5 if tensor.dim() == 1 else 2.0) / tensor[0].numel() ** 0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith('running_var') else values * scale)
    return peer


PEERS = {
    'two groupings': {'image_encoder': SQUARE},
    'three groupings, more than eight groups': {
        'image_encoder': {
            'dims': (16,) * 4,
            'depths': (1, 1, 1, 1),
            'num_heads': (2,) * 4,
            'num_group_tokens': (14, 12, 10, 0),
            'num_output_groups': (14, 12, 10),
            'mlp_ratio': 3.0,
            'grouping': {'cross_ratio': 3.0},
        },
        'text_encoder': {'heads': 4, 'layers': 3},
    },
}


@torch.no_grad()
@pytest.mark.parametrize('name', PEERS)
def test_same_answers_as_transformers(transformers: Any, name: str) -> None:
    config = toy_config(**PEERS[name])
    peer = peer_of(transformers, config)
    converted = convert_groupvit(peer.state_dict())
    assert not converted.unmatched
    model = MODELS.build(config).eval()
    assert load_into(model, converted.tensors).is_complete

    images = torch.randn(3, 3, 32, 32)
    token_ids = torch.randint(1, 400, (4, 20))
    token_ids[:, 0], token_ids[:, 12], token_ids[:, 13:] = 49406, 49407, 0
    expected = peer(
        input_ids=token_ids, pixel_values=images, output_attentions=True, output_segmentation=True
    )
    predictions = model.group_predictions(images)
    output, texts = predictions.output, l2_normalize(model.encode_text(token_ids))
    for soft, theirs in zip(output.soft, expected.vision_model_output.attentions):
        torch.testing.assert_close(soft, theirs.reshape(soft.shape), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        output.features, expected.vision_model_output.last_hidden_state, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(predictions.image_embeddings, expected.image_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(texts, expected.text_embeds, atol=1e-4, rtol=0)
    scale = model.logit_scale.exp()
    groups = scale * (scale * predictions.group_embeddings @ texts.T)
    shares = output.soft[0]
    for assignment in output.soft[1:]:
        shares = assignment @ shares
    shares = F.interpolate(shares.unflatten(-1, output.grid), size=(32, 32), mode='bilinear')
    maps = torch.einsum('bgk,bghw->bkhw', groups, shares)
    torch.testing.assert_close(maps, expected.segmentation_logits, atol=1e-2, rtol=1e-4)

    exported = export_groupvit(model.state_dict(), 'transformers')
    again = peer_of(transformers, config)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(exported.tensors)
    torch.testing.assert_close(again.state_dict(), peer.state_dict())


@torch.no_grad()
def test_exported_folder_opens_in_transformers(transformers: Any, tmp_path: Path) -> None:
    model = toy_groupvit()
    source = tmp_path / 'ours.pth'
    torch.save({'state_dict': model.state_dict()}, source)
    folder = tmp_path / 'exported'
    main(
        [
            '--to',
            'transformers',
            str(source),
            str(folder / 'model.safetensors'),
            '--config',
            write_config(tmp_path),
        ]
    )
    peer = transformers.GroupViTModel.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 32)
    theirs = F.normalize(pooled(peer.get_image_features(images)), dim=-1)
    torch.testing.assert_close(model.group_predictions(images).image_embeddings, theirs, atol=1e-4, rtol=0)


def pooled(features: Any) -> Tensor:
    """Older versions return the vectors, newer ones an object that holds them."""
    return features if isinstance(features, Tensor) else features.pooler_output
