"""Converting LSeg's Lightning checkpoints: every key mapped or explained, real sizes, the tool, the file."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.registry import init_default_scope

from ovd.checkpoints.loading import load_metadata, load_tensors
from ovd.checkpoints.reading import read_checkpoint
from ovd.config import load_config
from ovd.conversion.lseg import convert_lseg
from ovd.registry import MODELS
from tests.helpers import ROOT
from tests.toys.lseg import model_config, segmentor
from tools.convert_checkpoint import main

CONFIGS = ROOT / 'configs'
BLOCK = {'regularization': {'kind': 'depthwise', 'depth': 2, 'activation': 'tanh'}}


def as_lseg(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our keys under the names of the released code, and what its files hold besides."""
    theirs = {}
    for key, value in ours.items():
        part, *rest = key.split('.')
        name = '.'.join(rest)
        if key.startswith('backbone.vit.'):
            name = f'pretrained.model.{key.removeprefix("backbone.vit.")}'
        elif key.startswith('backbone.net.'):
            inner = key.removeprefix('backbone.net.')
            first = {'conv1': 'layer1.0', 'bn1': 'layer1.1', 'layer1': 'layer1.4'}
            head, _, tail = inner.partition('.')
            name = f'pretrained.{first.get(head, head)}.{tail}'
        elif part == 'backbone':
            kind, level, step, tail = rest
            index = {'readouts.project': '0.project.0', 'reassemble.project': '3', 'reassemble.resample': '4'}
            name = f'pretrained.act_postprocess{int(level) + 1}.{index[f"{kind}.{step}"]}.{tail}'
        elif part == 'neck' and rest[0] == 'lateral':
            name = f'scratch.layer{int(rest[1]) + 1}_rn.{rest[2]}'
        elif part == 'neck':
            _, level, step, *tail = rest
            step = {'project': 'out_conv', 'refine_lateral': 'resConfUnit1', 'refine': 'resConfUnit2'}[step]
            tail = '.'.join(tail).replace('norm', 'bn')
            name = f'scratch.refinenet{int(level) + 1}.{step}.{tail}'
        elif rest[0] == 'project':
            name = f'scratch.head1.{rest[1]}'
        else:
            name = f'scratch.head_block.depthwise.depthwise.{rest[-1]}'
        theirs[f'net.{name}'] = value
    theirs['net.scratch.refinenet4.resConfUnit1.conv1.weight'] = torch.zeros(2)
    theirs['net.clip_pretrained.logit_scale'] = torch.zeros(())
    theirs['net.pretrained.model.norm.weight'] = torch.zeros(2)
    theirs['net.pretrained.model.head.bias'] = torch.zeros(2)
    theirs['net.something_else'] = torch.zeros(2)
    return theirs


def test_every_key_is_mapped_or_explained() -> None:
    ours = segmentor(BLOCK).state_dict()
    converted = convert_lseg(as_lseg(ours))
    assert set(converted.tensors) == set(ours)
    for key, value in ours.items():
        assert torch.equal(converted.tensors[key], value)
    assert converted.unmatched == ['net.something_else']
    assert len(converted.stripped) == 4
    report = '\n'.join(converted.notes)
    assert 'width 32, 4 blocks, patch 16, image size 64; decoder of width 16' in report
    assert 'joint space of width 8; a regularization block' in report
    for word in ('CLIP', 'final norm', 'classifier', 'residual unit'):
        assert word in report


def test_keys_without_the_prefix_convert_too() -> None:
    theirs = as_lseg(segmentor().state_dict())
    bare = {key.removeprefix('net.'): value for key, value in theirs.items()}
    assert set(convert_lseg(bare).tensors) == set(convert_lseg(theirs).tensors)
    assert 'no regularization block' in convert_lseg(bare).notes[0]


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'net\.scratch\.head1\.weight'"):
        convert_lseg({'backbone.conv1.weight': torch.zeros(1)})


# Parameters in millions, without CLIP, as counted on the released classes, minus what we prune: 1.18 M of the
# unused residual unit, the ViT's final norm and its classifier of 1,000 classes.
@pytest.mark.parametrize(
    ('name', 'millions', 'shapes'),
    [
        (
            'lseg_vitl16_ade20k',
            343.9 - 1.18 - 1.03,
            {
                'net.pretrained.model.pos_embed': (1, 577, 1024),
                'net.pretrained.model.blocks.23.attn.qkv.weight': (3072, 1024),
                'net.pretrained.act_postprocess1.0.project.0.weight': (1024, 2048),
                'net.pretrained.act_postprocess1.4.weight': (256, 256, 4, 4),
                'net.pretrained.act_postprocess2.4.weight': (512, 512, 2, 2),
                'net.pretrained.act_postprocess3.3.weight': (1024, 1024, 1, 1),
                'net.pretrained.act_postprocess4.4.weight': (1024, 1024, 3, 3),
                'net.scratch.layer4_rn.weight': (256, 1024, 3, 3),
                'net.scratch.head1.weight': (512, 256, 1, 1),
            },
        ),
        (
            'lseg_vitb32_ade20k',
            109.1 - 1.18 - 0.77,
            {
                'net.pretrained.model.pos_embed': (1, 145, 768),
                'net.pretrained.act_postprocess1.4.weight': (96, 96, 8, 8),
                'net.pretrained.act_postprocess2.4.weight': (192, 192, 4, 4),
                'net.pretrained.act_postprocess3.4.weight': (384, 384, 2, 2),
                'net.pretrained.act_postprocess4.3.weight': (768, 768, 1, 1),
            },
        ),
        (
            'lseg_r101_pascal5i',
            61.2 - 1.18,
            {
                'net.pretrained.layer1.0.weight': (64, 3, 7, 7),
                'net.pretrained.layer1.4.2.conv3.weight': (256, 64, 1, 1),
                'net.pretrained.layer3.22.bn3.running_var': (1024,),
                'net.pretrained.layer4.0.downsample.0.weight': (2048, 1024, 1, 1),
                'net.scratch.layer1_rn.weight': (256, 256, 3, 3),
            },
        ),
    ],
)
def test_real_sizes_have_the_published_keys_and_shapes(
    name: str, millions: float, shapes: dict[str, tuple[int, ...]]
) -> None:
    init_default_scope('mmseg')
    with torch.device('meta'):
        model = MODELS.build(load_config(CONFIGS / f'{name}.py').model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)
    theirs = as_lseg(model.state_dict())
    for key, shape in shapes.items():
        assert tuple(theirs[key].shape) == shape
    assert set(convert_lseg(theirs).tensors) == set(model.state_dict())


def toy_config(folder: Path) -> Path:
    path = folder / 'toy.py'
    path.write_text(f"default_scope = 'mmseg'\nmodel = {model_config(BLOCK).to_dict()!r}\n")
    return path


def save_lightning(path: Path, state: dict[str, torch.Tensor]) -> None:
    """A checkpoint as Lightning 1.3 writes it: its callbacks are keys of the file, as classes."""
    modules = [ModuleType(name) for name in _modules('pytorch_lightning.callbacks.model_checkpoint')]
    callback = type('ModelCheckpoint', (), {'__module__': modules[-1].__name__})
    modules[-1].__dict__['ModelCheckpoint'] = callback
    sys.modules.update({module.__name__: module for module in modules})
    try:
        content = {
            'epoch': 3,
            'callbacks': {callback: {'best_model_score': torch.zeros(()), 'best_model_path': 'x.ckpt'}},
            'lr_schedulers': [{'base_lrs': [0.1], 'lr_lambdas': [None]}],
            'state_dict': state,
        }
        torch.save(content, path)
    finally:
        for module in modules:
            del sys.modules[module.__name__]


def _modules(name: str) -> list[str]:
    parts = name.split('.')
    return ['.'.join(parts[: index + 1]) for index in range(len(parts))]


def test_lightning_file_through_the_tool(tmp_path: Path, capsys: Any) -> None:
    ours = segmentor(BLOCK).state_dict()
    source, out = tmp_path / 'demo.ckpt', tmp_path / 'lseg.safetensors'
    save_lightning(source, as_lseg(ours))
    assert read_checkpoint(source)['epoch'] == 3
    main(['--from', 'lseg', str(source), str(out), '--config', str(toy_config(tmp_path))])
    report = capsys.readouterr().out
    assert 'patch 16' in report
    assert 'never called' in report
    assert 'no counterpart: net.something_else' in report
    assert 'left out 4 on purpose and 1 without a counterpart' in report
    assert load_metadata(out)['converted_from'] == 'LSeg'
    assert set(load_tensors(out)) == set(ours)


def test_a_block_missing_in_the_config_is_refused_by_name(tmp_path: Path) -> None:
    source, out = tmp_path / 'plain.ckpt', tmp_path / 'lseg.safetensors'
    torch.save({'state_dict': as_lseg(segmentor().state_dict())}, source)
    with pytest.raises(ValueError, match=r'fill.*head\.regularization\.conv'):
        main(['--from', 'lseg', str(source), str(out), '--config', str(toy_config(tmp_path))])
    assert not out.exists()
