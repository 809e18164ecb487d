"""What a user sees of an error, and how command-line values become Python values."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader, Dataset

from ovd.cli import console as cli
from ovd.cli.console import KeyValue, add_config_arguments, one_line, parse_value, run_tool
from ovd.devices import find_device, limit_threads
from ovd.registry import MODELS
from ovd.training.runner import check_optimizer


def failing(error: BaseException) -> Any:
    def main(argv: Sequence[str] | None) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('two\n  lines'), 'error: two lines'),
        (KeyError("no class 'x' here"), "error: no class 'x' here"),
        (FileNotFoundError('a.png does not exist'), 'error: a.png does not exist'),
        (NotImplementedError(), 'error: NotImplementedError'),
        (torch.cuda.OutOfMemoryError('CUDA out of memory.'), 'error: CUDA out of memory.'),
        (
            ValueError('class `Outer` in ovd/a.py: class `Inner` in ovd/b.py: 3 classes expected, got 2'),
            'error: 3 classes expected, got 2',
        ),
        (
            TypeError(
                "class `A` in a.py: class `Head` in b.py: __init__() got an unexpected keyword argument 'x'"
            ),
            "error: in the config of Head: __init__() got an unexpected keyword argument 'x'",
        ),
    ],
)
def test_expected_errors_are_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(failing(error), []) == 2
    assert capsys.readouterr().err == line + '\n'


@pytest.mark.parametrize('error', [TypeError('NoneType is not callable'), AssertionError('invariant')])
def test_programming_errors_are_one_line_with_their_origin(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(failing(error), []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert type(error).__name__ in line
    assert str(error) in line
    assert 'test_cli.py' in line
    with pytest.raises(type(error)):
        run_tool(failing(error), [], debug=True)


def test_the_traceback_of_a_programming_error_is_in_the_log_file(tmp_path: Path) -> None:
    logger = MMLogger.get_instance('a run', log_file=str(tmp_path / 'run.log'))
    assert logger is MMLogger.get_current_instance()
    assert run_tool(failing(AssertionError('invariant')), []) == 1
    assert 'Traceback' in (tmp_path / 'run.log').read_text()


def test_the_traceback_of_any_error_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('OVD_TRACEBACK', '1')
    with pytest.raises(ValueError, match='bad'):
        run_tool(failing(ValueError('bad')), [])


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(lambda argv: None, []) == 0
    assert run_tool(lambda argv: 3, []) == 3
    assert run_tool(failing(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == 'interrupted\n'


class Broken(Dataset[int]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize('kind', [FileNotFoundError, KeyError])
def test_an_error_in_a_loader_worker_is_as_short(kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        next(iter(DataLoader(Broken(kind('image 7.png: does not exist')), num_workers=1)))
    assert 'Traceback' in str(caught.value)
    assert one_line(caught.value) == 'image 7.png: does not exist'


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('3', 3),
        ('1e-3', 1e-3),
        ('true', True),
        ('False', False),
        ('None', None),
        ('none', 'none'),
        ('[1, 2]', [1, 2]),
        ("['a', 'b c']", ['a', 'b c']),
        ('[red star, ring]', ['red star', 'ring']),
        ('(1, 2)', (1, 2)),
        ("{'a': 1}", {'a': 1}),
        ('red star, ring', 'red star, ring'),
        ('data/x.json', 'data/x.json'),
        ('', ''),
        ('ovd.ViLD', 'ovd.ViLD'),
    ],
)
def test_values_from_the_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_options_collect(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    args = parser.parse_args(['c.py', '--cfg-options', 'a.b=1', 'c=x=y', '--cfg-options', 'd=[1]'])
    assert args.cfg_options == {'a.b': 1, 'c': 'x=y', 'd': [1]}
    assert parser.parse_args(['c.py']).cfg_options == {}
    with pytest.raises(SystemExit):
        parser.parse_args(['c.py', '--cfg-options', 'a'])
    assert "--cfg-options expects KEY=VALUE, got 'a'" in capsys.readouterr().err
    assert issubclass(KeyValue, argparse.Action)


@pytest.mark.parametrize(('cores', 'before', 'after'), [(64, 64, 8), (64, 4, 4), (4, 4, 4)])
def test_threads_are_limited_on_large_machines(
    monkeypatch: pytest.MonkeyPatch, cores: int, before: int, after: int
) -> None:
    threads = [before]
    monkeypatch.setattr(cli.os, 'sched_getaffinity', lambda pid: range(cores), raising=False)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads[0])
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: threads.__setitem__(0, number))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    limit_threads()
    assert threads == [after]
    monkeypatch.setenv('OMP_NUM_THREADS', '64')
    threads[0] = 64
    limit_threads()
    assert threads == [64]


def test_a_device_that_is_not_there_is_named() -> None:
    assert find_device('cpu') == 'cpu'
    assert find_device(None, local_rank=3).startswith(('cpu', 'cuda:'))
    with pytest.raises(ValueError, match=r"unknown device 'tpu9': expected"):
        find_device('tpu9')
    with pytest.raises(ValueError, match=r"device 'cuda:99' is not here: torch sees \d+ GPUs"):
        find_device('cuda:99')


def building(config: dict[str, Any]) -> Callable[..., None]:
    """A tool that builds a config with the library's own registries."""

    def main(argv: Any) -> None:
        with DefaultScope.overwrite_default_scope('mmdet'):
            MODELS.build(config)

    return main


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (
            {'type': 'ovd.ViLDRoIHead', 'distil_weight': 1},
            ("'distil_weight'", 'ViLDRoIHead', "'distill_weight'"),
        ),
        ({'type': 'ovd.ViLDBBoxHead', 'mod': 'vild'}, ("'mod'", 'ViLDBBoxHead', "'mode'")),
    ],
)
def test_a_wrong_argument_of_a_config_is_one_line(
    config: dict[str, Any], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(building(config), []) == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert all(word in message for word in words)


def test_a_wrong_optimizer_is_named() -> None:
    config = Config({'optim_wrapper': {'optimizer': {'type': 'AdamWW'}}})
    with pytest.raises(ValueError, match=r"'AdamWW'.*'AdamW'"):
        check_optimizer(config)
    check_optimizer(Config({'optim_wrapper': {'optimizer': {'type': 'AdamW'}}}))
    check_optimizer(Config({}))
