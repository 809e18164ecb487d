"""Converting published checkpoints with the tool: keys, CLIP left out, fit checked, damage refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ovd.checkpoints.loading import load_into, load_metadata, load_tensors
from ovd.conversion.vild import convert_detpro, convert_detpro_prompts
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.text.vocabulary import Vocabulary
from tests.helpers import ROOT
from tools.convert_checkpoint import main

THEIRS = {
    'trunk': 'shared',
    'image_trunk': 'shared_for_image',
    'classifier.project': 'roi_head.projection',
    'image_classifier.project': 'roi_head.projection_for_image',
}


def as_detpro(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename our keys back to DetPro's, with a background of weight + bias and a CLIP copy."""
    theirs = {}
    for key, value in ours.items():
        name = key
        for ending in ('convs', 'fcs'):
            name = name.replace(f'bbox_head.image_trunk.{ending}', f'bbox_head.shared_{ending}_for_image')
            name = name.replace(f'bbox_head.trunk.{ending}', f'bbox_head.shared_{ending}')
        name = name.replace('bbox_head.image_classifier.project', 'projection_for_image')
        name = name.replace('bbox_head.classifier.project', 'projection')
        if name == 'roi_head.bbox_head.classifier.background':
            theirs['roi_head.bg_embedding.weight'] = value[:, None] - 1
            theirs['roi_head.bg_embedding.bias'] = torch.ones_like(value)
        else:
            theirs[name] = value
    theirs['roi_head.clip_model.logit_scale'] = torch.zeros(())
    theirs['roi_head.something_else'] = torch.zeros(2)
    return theirs


def toy_config(folder: Path, mode: str = 'vild_ensemble') -> Path:
    from tests.toys.vild import model_config

    model = model_config(mode)
    model.text = {'vocabulary': ['cat', 'dog'], 'encoder': {'model': 'a tower that must not be opened'}}
    path = folder / 'toy.py'
    path.write_text(f"default_scope = 'mmdet'\nmodel = {model.to_dict()!r}\n")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    from tests.toys.vild import detector

    ours = detector('vild_ensemble').state_dict()
    path = tmp_path / 'epoch_20.pth'
    torch.save({'meta': {'epoch': 20, 'CLASSES': ('a', 'b')}, 'state_dict': as_detpro(ours)}, path)
    return path, ours


def test_round_trip_through_the_tool(checkpoint: Any, tmp_path: Path, capsys: Any) -> None:
    source, ours = checkpoint
    out = tmp_path / 'ours.safetensors'
    main([str(source), str(out), '--config', str(toy_config(tmp_path))])
    report = capsys.readouterr().out
    assert 'no counterpart: roi_head.something_else' in report
    assert 'left out 1 on purpose and 1 without a counterpart' in report
    tensors = load_tensors(out)
    assert set(tensors) == set(ours)
    for key, value in ours.items():
        torch.testing.assert_close(tensors[key], value)
    assert load_metadata(out)['converted_from'] == 'DetPro'
    from tests.toys.vild import detector

    assert load_into(detector('vild_ensemble'), tensors).is_complete


def test_weights_that_do_not_fill_the_model_are_refused(checkpoint: Any, tmp_path: Path) -> None:
    source, ours = checkpoint
    theirs = as_detpro(ours)
    del theirs['roi_head.projection.weight']
    torch.save({'state_dict': theirs}, source)
    out = tmp_path / 'ours.safetensors'
    with pytest.raises(ValueError, match=r'classifier\.project\.weight'):
        main([str(source), str(out), '--config', str(toy_config(tmp_path))])
    assert not out.exists()


def test_a_foreign_or_booby_trapped_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / 'foreign.pth'
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(1)}}, foreign)
    with pytest.raises(ValueError, match='DetPro'):
        main([str(foreign), str(tmp_path / 'x.safetensors')])

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / 'sprung',))

    trap = tmp_path / 'trap.pth'
    trap.write_bytes(pickle.dumps({'state_dict': Trap()}))
    with pytest.raises(ValueError, match=r'trap\.pth'):
        main([str(trap), str(tmp_path / 'x.safetensors')])
    assert not (tmp_path / 'sprung').exists()


def test_prompt_file_becomes_class_vectors(tmp_path: Path) -> None:
    prompts = torch.randn(3, 1, 6)
    torch.save(prompts, tmp_path / 'prompts.pth')
    out = tmp_path / 'prompts.vocab.safetensors'
    main([str(tmp_path / 'prompts.pth'), str(out), '--prompts', '--vocabulary', 'cat, dog'])
    loaded = TextEmbeddings.load(out)
    assert loaded.vocabulary.names == ('cat', 'dog')
    torch.testing.assert_close(loaded.embeddings, torch.nn.functional.normalize(prompts[:2, 0], dim=-1))


def test_prompts_of_another_shape_and_wrong_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'\[2, D\].*got \[4, 6\]'):
        convert_detpro_prompts(torch.zeros(4, 6), Vocabulary(['cat', 'dog']))
    with pytest.raises(ValueError, match=r'\.safetensors'):
        main([str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')])


def test_every_key_of_the_reference_config_has_a_place() -> None:
    """Names only: the reference config's keys survive the way to DetPro's names and back."""
    from mmengine.registry import init_default_scope

    from ovd.config import load_config
    from ovd.registry import MODELS

    init_default_scope('mmdet')
    model_config = load_config(ROOT / 'configs/vild_r50_lvis_reference_detpro.py').model
    with torch.device('meta'):
        model = MODELS.build(model_config)
    ours = {key: torch.zeros(1) for key in model.state_dict()}
    converted = convert_detpro(as_detpro(ours))
    assert set(converted.tensors) == set(ours)
    assert converted.unmatched == ['roi_head.something_else']


def test_weights_to_start_from_need_no_background(checkpoint: Any, tmp_path: Path) -> None:
    _, ours = checkpoint
    start = {key: value for key, value in as_detpro(ours).items() if 'projection' not in key}
    start = {key: value for key, value in start.items() if 'bg_embedding' not in key}
    converted = convert_detpro(start)
    assert 'roi_head.bbox_head.trunk.fcs.0.weight' in converted.tensors
    assert not [key for key in converted.tensors if 'classifier' in key]
    with pytest.raises(ValueError, match='bg_embedding'):
        convert_detpro({**start, 'roi_head.projection.weight': torch.zeros(1)})
