"""Groups of every stage, drawn on the image."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmseg.structures import SegDataSample
from PIL import Image

from ovd.checkpoints.writing import save_tensors
from ovd.cli.console import run_tool
from ovd.inference.draw_groups import Groups, find_groups, group_colors
from ovd.models.groupvit.readout import group_labels
from tests.helpers import ROOT, write_image
from tests.toys.groupvit import toy_config, toy_groupvit

PREPROCESSOR = {'type': 'SegDataPreProcessor', 'mean': [127.5] * 3, 'std': [64.0] * 3, 'bgr_to_rgb': True}


def sample_of(size: tuple[int, int]) -> SegDataSample:
    return SegDataSample(metainfo={'ori_shape': size})


@torch.no_grad()
def test_every_stage_at_the_original_size_with_the_words_of_the_final_groups() -> None:
    model = toy_groupvit(
        readout={'type': 'ovd.SoftReadout', 'background': {'threshold': 0.5}}, size_divisor=8
    )
    inputs = torch.randn(1, 3, 30, 44, generator=torch.Generator().manual_seed(0))
    first, final = find_groups(model, inputs, sample_of((60, 90)))
    assert first.labels.shape == final.labels.shape == (60, 90)
    assert (first.stage, final.stage) == (1, 2)
    padded = torch.nn.functional.pad(inputs, (0, 4, 0, 2))
    predictions = model.group_predictions(padded)
    expected = group_labels(predictions.output, (32, 48), (30, 44), (60, 90))[0]
    assert (final.labels == expected.numpy()).all()

    words = [*model.vocabulary.labels, 'background']
    table = model.readout.group_table(predictions, model.image_context(inputs))[0]
    assert final.names == tuple(
        f'{g + 1} {words[label]}' for g, label in enumerate(table.argmax(-1).tolist())
    )
    # Each of the six first groups carries the word of the final group it joins.
    joins = predictions.output.soft[1][0].argmax(0).tolist()
    assert first.names == tuple(f'{g + 1} {final.names[j].split(" ", 1)[1]}' for g, j in enumerate(joins))


@torch.no_grad()
def test_pictures_show_the_groups_that_the_readout_goes_by() -> None:
    readout = {'type': 'ovd.SoftReadout', 'assignment': 'hard'}
    model = toy_groupvit(readout=readout, size_divisor=8, test_cfg={'keep_groups': True})
    inputs = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    first, final = find_groups(model, inputs, sample_of((32, 48)))
    output = model.encode_image(inputs)
    for groups, stage in ((first, 1), (final, 2)):
        hard, soft = (
            group_labels(output, (32, 48), stages=stage, assignment=kind)[0] for kind in ('hard', 'soft')
        )
        assert (groups.labels == hard.numpy()).all()
        assert (hard != soft).any()
    (kept,) = model.predict(inputs, [sample_of((32, 48))])
    assert (kept.pred_groups.data[0].numpy() == final.labels).all()


@torch.no_grad()
def test_groups_have_words_of_their_own_where_places_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    names = []
    for level in ('groups', 'tokens'):
        model = toy_groupvit(readout={'type': 'ovd.SoftReadout', 'level': level}, size_divisor=8)
        output = model.encode_image(inputs)._replace(tokens=-torch.ones(1, 24, 16))
        monkeypatch.setattr(model, 'encode_image', lambda images, output=output: output)
        names.append([groups.names for groups in find_groups(model, inputs, sample_of((32, 48)))])
    assert names[0] == names[1]


def test_a_picture_of_groups_has_a_colour_for_each_and_a_legend() -> None:
    labels = np.zeros((48, 64), np.int64)
    labels[:, 32:] = 1
    image = np.full((48, 64, 3), 255, np.uint8)
    picture = Groups(labels, ('1 cat', '2 cat'), 2).draw(image)
    assert picture.shape[0] > 480  # enlarged tenfold, and a legend below
    left, right = picture[240, 100], picture[240, 500]
    assert (left != right).any()


def test_colours_of_many_groups_differ() -> None:
    for count in (1, 8, 20, 64, 100):
        colors = group_colors(count)
        assert len(colors) == len(set(colors)) == count
        assert all(0 <= value <= 255 for color in colors for value in color)


def test_other_models_have_no_groups() -> None:
    with pytest.raises(ValueError, match='Linear'):
        find_groups(torch.nn.Linear(1, 1), torch.zeros(1, 3, 8, 8), sample_of((8, 8)))


def write_toy_model(folder: Path, **changes: Any) -> list[str]:
    """A config and a checkpoint of a toy, as options of the tools."""
    changes = {'data_preprocessor': PREPROCESSOR, **changes}
    pipeline = "[dict(type='ovd.LoadImage'), dict(type='PackSegInputs')]"
    (folder / 'toy.py').write_text(
        f"default_scope = 'mmseg'\nmodel = {toy_config(**changes)!r}\n"
        f"test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline={pipeline}))\n"
    )
    changes['data_preprocessor'] = {**PREPROCESSOR, 'type': 'mmseg.SegDataPreProcessor'}
    save_tensors(folder / 'toy.safetensors', toy_groupvit(**changes).state_dict())
    return [
        '--config',
        str(folder / 'toy.py'),
        '--checkpoint',
        str(folder / 'toy.safetensors'),
        '--device',
        'cpu',
    ]


@pytest.mark.parametrize(('which', 'stages'), [('first', [1]), ('final', [2]), ('all', [1, 2])])
def test_the_demo_draws_the_stages_asked_for(
    which: str, stages: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools' / 'demo.py')
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    write_image(tmp_path / 'photo.png', 40, 56)
    options = [*write_toy_model(tmp_path), '--out', str(tmp_path / 'out'), '--groups', which]
    assert run_tool(demo.main, [str(tmp_path / 'photo.png'), *options]) == 0, capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / 'out').glob('*.png'))
    assert names == ['photo.png', *(f'photo_groups_{stage}.png' for stage in stages)]
    with Image.open(tmp_path / 'out' / names[-1]) as picture:
        assert min(picture.size) >= 480
