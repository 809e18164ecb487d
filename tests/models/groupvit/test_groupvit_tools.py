"""The tools that belong to grouping models: calibration of thresholds, analysis of groups."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ovd.cli.console import run_tool
from ovd.models.groupvit.thresholds import Thresholds
from tests.helpers import ROOT, write_coco, write_image
from tests.inference.test_draw_groups import write_toy_model
from tests.toys.groupvit import WORDS


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_task(folder: Path, **changes: Any) -> tuple[str, str]:
    """A toy model with data to test and to calibrate on: config and checkpoint."""
    readout = changes.pop('readout', {'type': 'ovd.SoftReadout', 'background': {'threshold': 0.4}})
    options = write_toy_model(folder, readout=readout, size_divisor=8, **changes)
    boxes = [
        [(index % 3, [4.0, 4.0, 30.0, 20.0]), ((index + 1) % 3, [36.0, 20.0, 24.0, 24.0])]
        for index in range(4)
    ]
    write_coco(folder, WORDS, boxes)
    data = (
        "dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict("
        f"type='ovd.OpenVocabularySegDataset', data_root={str(folder)!r}, ann_file='instances.json', "
        "data_prefix=dict(img_path='images'), background='class', test_mode=True, pipeline=["
        "dict(type='ovd.LoadImage'), dict(type='ovd.LoadSegmentation'), dict(type='PackSegInputs')]))"
    )
    config = folder / 'toy.py'
    text = config.read_text().split('test_dataloader')[0]
    config.write_text(
        f'{text}test_dataloader = {data}\ncalibration_dataloader = {data}\ntest_cfg = dict()\n'
        f"test_evaluator = dict(type='ovd.SegmentationMetric')\nwork_dir = {str(folder / 'work')!r}\n"
        'randomness = dict(seed=0)\n'
    )
    return str(config), options[3]


def test_calibration_writes_a_file_that_the_model_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = write_task(tmp_path)
    out = str(tmp_path / 'found.json')
    calibrate = tool('calibrate_thresholds').main
    argv = [config, checkpoint, '--out', out, '--device', 'cpu', '--min-pixels', '100']
    assert run_tool(calibrate, argv) == 0, capsys.readouterr().err
    assert '4 images, overall' in capsys.readouterr().out
    found = Thresholds.load(out)
    assert set(found.per_class) == set(WORDS)
    assert found.encoder_fingerprint

    # The file fits the model it came from, and may be there already when it is made again.
    changed = f"model.readout={{'type': 'ovd.SoftReadout', 'background': {{'thresholds': '{out}'}}}}"
    assert run_tool(calibrate, [*argv, '--limit', '2', '--cfg-options', changed]) == 0, (
        capsys.readouterr().err
    )
    assert Thresholds.load(out).fit['images'] == 2
    without = [*argv, '--without-masks', '--max-prior', '0.9', '--min-groups', '1']
    assert run_tool(calibrate, without) == 0, capsys.readouterr().err
    assert Thresholds.load(out).fit['method'] == 'images without masks'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--data', 'other_dataloader'], 'other_dataloader'),
        (['--bins', '0'], '--bins'),
        (['--cfg-options', 'calibration_dataloader.dataset.vocabulary=cat, cow'], 'different classes'),
    ],
)
def test_mistakes_in_calibration_end_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = write_task(tmp_path)
    argv = [config, checkpoint, '--out', str(tmp_path / 'x.json'), '--device', 'cpu', *options]
    if 'classes' in message:
        argv.append("calibration_dataloader.dataset.absent_policy='drop'")
    assert run_tool(tool('calibrate_thresholds').main, argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_analysis_compares_with_the_untrained_model_and_a_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = write_task(tmp_path)
    out = tmp_path / 'groups.json'
    argv = [config, checkpoint, '--out', str(out), '--limit', '3']
    assert run_tool(tool('analyze_groups').main, argv) == 0, capsys.readouterr().err
    reports = json.loads(out.read_text())
    assert set(reports) == {'trained', 'before training'}
    for report in reports.values():
        assert report['protocol']['images'] == 3
        assert report['protocol']['baseline_groups'] == 3
        assert report['metrics']['groups/oracle_mIoU'] >= 0
        assert 'seg/mIoU' in report['metrics']
    assert reports['trained']['metrics'] != reports['before training']['metrics']
    grids = [report['metrics']['groups/grid_oracle_mIoU'] for report in reports.values()]
    assert grids[0] == grids[1]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('grid of 3') for line in lines)
    assert any(line.startswith('before training') for line in lines)


PAIRS = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='ovd.LoadImage'), dict(type='ovd.CaptionPrompts', count=0), dict(type='ovd.PackCaptions')]))
"""


@pytest.mark.parametrize(
    ('data', 'message'),
    [('', 'test_dataloader'), (PAIRS, 'is for pairs of image and caption')],
)
def test_configs_without_a_way_to_ask_are_refused(
    data: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write_toy_model(tmp_path)
    config = Path(options[1])
    config.write_text(config.read_text().split('test_dataloader')[0] + data)
    write_image(tmp_path / 'photo.png', 40, 56)
    assert run_tool(tool('demo').main, [str(tmp_path / 'photo.png'), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    if not data:
        argv = [options[1], options[3], '--limit', '2', '--work-dir', str(tmp_path)]
        assert run_tool(tool('analyze_groups').main, argv) == 2
        assert message in capsys.readouterr().err
