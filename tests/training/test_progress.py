"""Progress on a terminal and elsewhere, curves of interrupted runs, TensorBoard's files."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovd.cli.main import run
from ovd.training import progress
from ovd.training.progress import draw_curves, group_curves, read_scalars, readable_time
from tests.toys.runs import write_config


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


VALIDATION = """
val_dataloader = test_dataloader
val_cfg = dict()
val_evaluator = test_evaluator
train_cfg['val_interval'] = 10
"""


def test_lines_come_at_once_and_after_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0.0, 2000.0, 8.0).tolist())
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
    config = write_config(tmp_path, length=12, extra="default_hooks['logger']['interval'] = 100")
    assert run(['train', str(config), '--work-dir', str(tmp_path / 'run')]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if 'training: ' in line]
    assert 'training: 1 of 12,' in lines[0]
    assert 1 < len(lines) < 12
    assert all('loss' in line and ' left' in line for line in lines)


def test_a_terminal_gets_a_bar_in_place_of_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, length=20, extra=VALIDATION)
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    assert run(['train', str(config), '--work-dir', str(tmp_path / 'run')]) == 0
    shown = capsys.readouterr().out
    assert ' eta: ' not in shown
    assert shown.count('toy/error') == 2  # what a validation found stays a line
    assert 'Trained weights' in shown
    assert 'training' in terminal.getvalue()
    assert '20/20' in terminal.getvalue() or '/20' in terminal.getvalue()
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert ' eta: ' in log.read_text()
    assert run(['test', str(config), str(tmp_path / 'run' / 'latest.pth'), '--work-dir', str(tmp_path)]) == 0
    assert 'testing' in terminal.getvalue()


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(4.2, '4 s'), (89, '89 s'), (90, '2 min'), (5000, '83 min'), (12000, '3 h 20 min'), (187200, '2 d 4 h')],
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text


def test_curves_are_drawn_beside_the_log(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=20, extra=VALIDATION)
    assert run(['train', str(config), '--work-dir', str(tmp_path / 'run')]) == 0
    picture = np.asarray(Image.open(tmp_path / 'run' / 'curves.png').convert('RGB'))
    assert picture.shape[1] > 600
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # lines in several colours
    curves = group_curves(read_scalars(tmp_path / 'run'))
    assert curves['loss']['loss'][0] == [5, 10, 15, 20]
    assert curves['metrics']['toy/error'][0] == [10, 20]
    assert curves['learning rate']['lr'][0] == [5, 10, 15, 20]


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    def log(name: str, rows: list[dict[str, float]], cut: str = '') -> None:
        path = tmp_path / name / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + cut)

    log('20260101_000000', [{'step': step, 'loss': 1.0} for step in (5, 10, 15)], cut='{"step": 20, "lo')
    log(
        '20260102_000000', [{'step': step, 'loss': 2.0} for step in (10, 15, 20)] + [{'step': 20, 'a/b': 3.0}]
    )
    assert [(row['step'], row['loss']) for row in read_scalars(tmp_path)] == [
        (5, 1),
        (10, 2),
        (15, 2),
        (20, 2),
    ]
    assert group_curves(read_scalars(tmp_path))['metrics'] == {'a/b': ([20], [3.0])}
    assert draw_curves(tmp_path / 'nothing') is None


def test_tensorboard_gets_the_losses(tmp_path: Path) -> None:
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    config = write_config(tmp_path, length=20)
    assert run(['train', str(config), '--work-dir', str(tmp_path / 'run'), '--tensorboard']) == 0
    [events] = (tmp_path / 'run').rglob('events.out.tfevents*')
    found = accumulator.EventAccumulator(str(events)).Reload()
    scalars = found.Scalars('loss')
    assert [event.step for event in scalars] == [5, 10, 15, 20]
    logged = {row['step']: row['loss'] for row in read_scalars(tmp_path / 'run')}
    assert [event.value for event in scalars] == pytest.approx(list(logged.values()))


def test_tensorboard_is_named_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    assert run(['train', str(write_config(tmp_path)), '--work-dir', str(tmp_path), '--tensorboard']) == 2
    assert 'ovd[tensorboard]' in capsys.readouterr().err
