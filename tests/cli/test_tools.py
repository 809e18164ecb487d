"""tools/train.py and tools/test.py: what a user types, on a toy model, through the real mmengine Runner."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config

from ovd.checkpoints.loading import load_tensors
from ovd.checkpoints.reading import read_checkpoint
from ovd.checkpoints.writing import save_tensors
from ovd.cli.console import run_tool
from ovd.training.hooks import find_latest
from ovd.training.options import prepare_testing, prepare_training
from ovd.training.reports import to_json
from tests.helpers import ROOT
from tests.toys.checkpoints import BOOBY_TRAPS, was_run
from tests.toys.runs import write_config


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(name: str, *argv: object) -> int:
    """Run a tool in this process; its exit code."""
    return run_tool(load_tool(name).main, [str(arg) for arg in argv])


def tool_process(name: str, *argv: object, launch: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a tool in a process of its own."""
    path = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    command = [sys.executable, *launch, str(ROOT / 'tools' / f'{name}.py'), *(str(arg) for arg in argv)]
    return subprocess.run(
        command,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(path), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=500,
    )


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return load_tensors(work_dir / 'latest.pth')


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that a failed tool leaves."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: ')
    return lines[0]


# The usual path.


def test_train_then_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert tool('train', config, '--work-dir', tmp_path / 'run') == 0
    progress = capsys.readouterr().out.splitlines()
    assert len(progress) == 8, progress
    assert 'Training ToyLine' in progress[1]
    assert 'training: 1 of 20' in progress[2]
    assert 'Iter(train) [20/20]' in progress[-2]
    assert 'eta:' in progress[-2]
    assert 'loss:' in progress[-2]
    assert 'data_time' not in progress[-2]
    assert progress[-1].endswith('run/latest.pth')
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert 'System environment' in log.read_text()
    assert 'data_time' in log.read_text()

    out = tmp_path / 'result' / 'metrics.json'
    latest = tmp_path / 'run' / 'latest.pth'
    assert tool('test', config, latest, '--work-dir', tmp_path / 'run', '--out', out) == 0
    report = json.loads(out.read_text())
    assert report['metrics']['toy/error'] > 0
    assert report['metrics']['toy/undefined'] is None
    called = {'config': str(config), 'checkpoint': str(latest), 'shuffled_text': False}
    assert report['protocol'] == called


def test_results_go_to_the_work_directory_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, length=2)
    assert tool('train', config) == 0
    work_dir = tmp_path / 'work_dirs' / 'toy'
    assert find_latest(work_dir) == Path('work_dirs/toy/latest.pth').resolve().parent / 'latest.pth'
    assert tool('test', config, work_dir / 'latest.pth') == 0
    assert (work_dir / 'metrics.json').exists()


def test_weights_saved_as_safetensors_can_be_tested(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=2)
    assert tool('train', config, '--work-dir', tmp_path) == 0
    save_tensors(tmp_path / 'toy.safetensors', weights(tmp_path))
    assert tool('test', config, tmp_path / 'toy.safetensors', '--work-dir', tmp_path) == 0


def test_options_reach_the_config(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=2)
    options = [
        'model.width=3',
        'param_scheduler.0.end=5',
        "model_wrapper_cfg={'a': 1}",
        'train_cfg.max_iters=3',
    ]
    assert (
        tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options', *options[:2], options[3]) == 0
    )
    assert weights(tmp_path / 'run')['layers.0.weight'].shape == (3, 1)
    assert (tmp_path / 'run' / 'iter_3.pth').exists()


def test_a_seed_repeats_a_run_and_another_does_not(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=6)
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        assert tool('train', config, '--work-dir', tmp_path / name, '--seed', seed) == 0
    assert equal(weights(tmp_path / 'a'), weights(tmp_path / 'b'))
    assert not equal(weights(tmp_path / 'a'), weights(tmp_path / 'c'))


def test_the_number_of_workers_does_not_change_a_run(tmp_path: Path) -> None:
    for workers in (0, 2):
        config = write_config(tmp_path, length=8, workers=workers)
        assert tool('train', config, '--work-dir', tmp_path / str(workers)) == 0
    assert equal(weights(tmp_path / '0'), weights(tmp_path / '2'))


def test_mixed_precision_works_without_a_gpu(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=10)
    for name, amp in (('full', []), ('mixed', ['--amp'])):
        assert tool('train', config, '--work-dir', tmp_path / name, *amp) == 0
    full, mixed = weights(tmp_path / 'full'), weights(tmp_path / 'mixed')
    assert all(value.dtype == torch.float32 for value in mixed.values())
    assert not equal(full, mixed)
    for name in full:
        torch.testing.assert_close(full[name], mixed[name], atol=0.05, rtol=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason='checks the choice made without a GPU')
def test_mixed_precision_names_what_it_cannot_wrap() -> None:
    config = Config({'optim_wrapper': {'type': 'ApexOptimWrapper'}})
    with pytest.raises(ValueError, match="'ApexOptimWrapper'"):
        prepare_training(config, amp=True)
    with pytest.raises(ValueError, match='optim_wrapper'):
        prepare_training(Config({}), amp=True)
    config = Config({'optim_wrapper': {'optimizer': {'type': 'SGD'}}})
    prepare_training(config, amp=True)
    assert config.optim_wrapper.type == 'ovd.BFloat16OptimWrapper'
    # A config whose recipe says float16 trains on a CPU too.
    config = Config(
        {'optim_wrapper': {'type': 'AmpOptimWrapper', 'loss_scale': 'dynamic', 'dtype': 'float16'}}
    )
    prepare_training(config)
    assert config.optim_wrapper == {'type': 'ovd.BFloat16OptimWrapper'}


# Interrupted runs.


@pytest.mark.parametrize(
    ('by_epoch', 'workers', 'kill'),
    [
        (False, 0, 'at=13'),
        (False, 2, 'at=3, while_saving=True'),
        (True, 2, 'at=15'),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, by_epoch: bool, workers: int, kill: str
) -> None:
    sizes = {'length': 4, 'interval': 1} if by_epoch else {'length': 20, 'interval': 5}
    config = write_config(tmp_path, by_epoch=by_epoch, workers=workers, **sizes)
    assert tool('train', config, '--work-dir', tmp_path / 'undisturbed') == 0

    killer = tmp_path / 'killed'
    killer.mkdir()
    killed = write_config(
        killer,
        by_epoch=by_epoch,
        workers=workers,
        extra=f"custom_hooks = [dict(type='ToyKill', {kill})]",
        **sizes,
    )
    run = tool_process('train', killed, '--work-dir', tmp_path / 'run')
    assert run.returncode == -signal.SIGKILL, run.stderr
    latest = find_latest(tmp_path / 'run')
    assert latest is not None
    stopped_at = read_checkpoint(latest)['meta']['iter']
    assert 0 < stopped_at < 20

    assert tool('train', config, '--work-dir', tmp_path / 'run', '--resume') == 0
    assert equal(weights(tmp_path / 'run'), weights(tmp_path / 'undisturbed'))
    assert not list((tmp_path / 'run').glob('.*'))


def test_a_run_without_a_seed_resumes_with_the_one_it_drew(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=10, extra='randomness = dict(seed=None)')
    assert tool('train', config, '--work-dir', tmp_path / 'a') == 0
    half = tmp_path / 'half.pth'
    assert tool('train', config, '--work-dir', tmp_path / 'b', '--cfg-options', 'train_cfg.max_iters=5') == 0
    (tmp_path / 'b' / 'iter_5.pth').rename(half)
    for name in ('one', 'two'):
        assert tool('train', config, '--work-dir', tmp_path / name, '--resume', half) == 0
    assert equal(weights(tmp_path / 'one'), weights(tmp_path / 'two'))
    assert not equal(weights(tmp_path / 'one'), weights(tmp_path / 'a'))


def test_resume_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=3)
    assert tool('train', config, '--work-dir', tmp_path / 'run', '--resume') == 0
    assert read_checkpoint(tmp_path / 'run' / 'latest.pth')['meta']['iter'] == 3


def test_the_latest_checkpoint_is_found_in_several_ways(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('')
    assert find_latest(tmp_path) is None
    (tmp_path / 'iter_5.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/moved/since/iter_5.pth')
    assert find_latest(tmp_path) == tmp_path / 'iter_5.pth'
    (tmp_path / 'latest.pth').symlink_to('iter_5.pth')
    assert find_latest(tmp_path) == tmp_path / 'latest.pth'


def test_only_as_many_checkpoints_as_asked_for_are_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path, by_epoch=True, length=4, interval=1)
    assert tool('train', config, '--work-dir', tmp_path / 'run') == 0
    assert sorted(path.name for path in (tmp_path / 'run').glob('epoch*')) == ['epoch_3.pth', 'epoch_4.pth']
    assert os.readlink(tmp_path / 'run' / 'latest.pth') == 'epoch_4.pth'


BEST = """
val_dataloader = test_dataloader
val_cfg = dict()
val_evaluator = test_evaluator
default_hooks = dict(checkpoint=dict(
    type='CheckpointHook', interval=1, save_best='toy/error', rule='less', max_keep_ckpts=1))
"""


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path, by_epoch=True, length=4, extra=BEST)
    assert tool('train', config, '--work-dir', tmp_path / 'run') == 0
    [best] = (tmp_path / 'run').glob('best_*')
    hub = read_checkpoint(tmp_path / 'run' / 'latest.pth')['message_hub']['runtime_info']
    assert Path(hub['best_ckpt']) == best
    assert [path.name for path in (tmp_path / 'run').glob('epoch*')] == ['epoch_4.pth']


# Several processes.


def test_two_processes_train_and_test_without_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.device_count() == 1:
        pytest.skip('two processes need no GPU, or two')
    config = write_config(tmp_path, length=6)
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    run = tool_process(
        'train', config, '--work-dir', tmp_path / 'run', '--launcher', 'pytorch', launch=launch
    )
    assert run.returncode == 0, run.stderr
    assert sum('Iter(train) [5/6]' in line for line in run.stdout.splitlines()) == 1
    latest = tmp_path / 'run' / 'latest.pth'
    test = tool_process(
        'test', config, latest, '--work-dir', tmp_path, '--launcher', 'pytorch', launch=launch
    )
    assert test.returncode == 0, test.stderr
    two = json.loads((tmp_path / 'metrics.json').read_text())['metrics']['toy/error']
    assert tool('test', config, latest, '--work-dir', tmp_path / 'one') == 0
    one = json.loads((tmp_path / 'one' / 'metrics.json').read_text())['metrics']['toy/error']
    assert two == pytest.approx(one, rel=0.2)


@pytest.mark.skipif(torch.cuda.is_available(), reason='checks the message without a GPU')
def test_slurm_without_a_gpu_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('SLURM_PROCID', '0')
    assert tool('train', write_config(tmp_path), '--work-dir', tmp_path, '--launcher', 'slurm') == 2
    assert '--launcher slurm needs GPUs' in error_line(capsys)


# Bad input: one line, exit code 1, nothing lost.


def test_bad_configs_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool('train', tmp_path / 'no.py') == 2
    assert 'no.py does not exist' in error_line(capsys)
    assert (
        tool(
            'train', write_config(tmp_path, extra='optim_wraper = dict(clip_grad=1)'), '--work-dir', tmp_path
        )
        == 2
    )
    assert "unknown section 'optim_wraper', did you mean 'optim_wrapper'?" in error_line(capsys)
    needy = "needs = [dict(path='no/such.json', what='annotations', how='see data/README.md')]"
    assert tool('train', write_config(tmp_path, extra=needy), '--work-dir', tmp_path) == 2
    line = error_line(capsys)
    assert 'no/such.json (annotations): see data/README.md' in line


def test_an_unknown_model_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert tool('train', config, '--work-dir', tmp_path, '--cfg-options', 'model.type=ovd.Nothing') == 2
    assert 'Nothing' in error_line(capsys)


def test_a_missing_checkpoint_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert tool('test', config, tmp_path / 'no.pth', '--work-dir', tmp_path) == 2
    assert 'no.pth does not exist' in error_line(capsys)
    assert tool('train', config, '--work-dir', tmp_path, '--resume', tmp_path / 'no.pth') == 2
    assert 'no.pth does not exist' in error_line(capsys)
    start = f'load_from={tmp_path / "no.pth"}'
    assert tool('train', config, '--work-dir', tmp_path, '--cfg-options', start) == 2
    assert 'no.pth does not exist' in error_line(capsys)


def test_metrics_have_a_place_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (write_config(tmp_path), tmp_path / 'no.pth', '--out', tmp_path)
    assert tool('test', *arguments) == 2
    assert f'--out {tmp_path} is a folder' in error_line(capsys)


@pytest.mark.parametrize(
    ('tensors', 'message'),
    [
        ({'backbone.conv.weight': torch.ones(1)}, 'is not a checkpoint of this ToyLine: 0 tensors match'),
        ({'layers.0.weight': torch.ones(3, 1)}, 'layers.0.weight (3, 1) instead of (8, 1)'),
    ],
)
def test_another_models_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tensors: dict[str, torch.Tensor], message: str
) -> None:
    config = write_config(tmp_path)
    torch.save({'state_dict': tensors, 'meta': {}}, tmp_path / 'other.pth')
    for argv in (
        ('test', config, tmp_path / 'other.pth'),
        ('train', config, '--resume', tmp_path / 'other.pth'),
    ):
        assert tool(*argv, '--work-dir', tmp_path / 'run') == 2
        assert message in error_line(capsys)


def test_the_log_file_names_every_key_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({f'old.{index}': torch.ones(1) for index in range(9)}, tmp_path / 'other.pth')
    config = write_config(tmp_path)
    assert tool('test', config, tmp_path / 'other.pth', '--work-dir', tmp_path / 'run') == 2
    captured = capsys.readouterr()
    assert 'old.5 and 3 more' in captured.err
    assert 'old.8' not in captured.out + captured.err
    [log] = (tmp_path / 'run').glob('*/*.log')
    lines = log.read_text().splitlines()
    assert {f'unexpected: old.{index}' for index in range(9)} | {'missing: layers.0.weight'} <= set(lines)


def test_starting_from_other_weights_reports_the_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({'layers.0.weight': torch.ones(8, 1), 'head': torch.ones(1)}, tmp_path / 'start.pth')
    config = write_config(tmp_path, length=2, extra=f'load_from = {str(tmp_path / "start.pth")!r}')
    assert tool('train', config, '--work-dir', tmp_path / 'run') == 0
    assert '1 tensors match; 3 missing: layers.0.bias' in capsys.readouterr().out
    torch.save({'head': torch.ones(1)}, tmp_path / 'start.pth')
    assert tool('train', config, '--work-dir', tmp_path / 'run') == 2
    assert 'start.pth belongs to another model' in error_line(capsys)


@pytest.mark.parametrize('trap', sorted(BOOBY_TRAPS))
def test_no_entry_point_runs_a_booby_trap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trap: str
) -> None:
    path = BOOBY_TRAPS[trap](tmp_path)
    config = write_config(tmp_path, length=2)
    work_dir = ('--work-dir', tmp_path / 'run')
    pretrained = f"model.init_cfg={{'type': 'Pretrained', 'checkpoint': {str(path)!r}}}"
    for argv in (
        ('test', config, path, *work_dir),
        ('train', config, '--resume', path, *work_dir),
        ('train', config, *work_dir, '--cfg-options', f'load_from={path}'),
        ('train', config, *work_dir, '--cfg-options', pretrained),
    ):
        assert tool(*argv) == 2
        assert f'{path.name}: refused' in error_line(capsys)
    (tmp_path / 'run' / 'latest.pth').symlink_to(path)
    assert tool('train', config, *work_dir, '--resume') == 2
    assert 'latest.pth: refused' in error_line(capsys)
    assert not was_run(tmp_path)


def test_config_text_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    config = write_config(tmp_path, length=4)
    assert (
        tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options', 'train_cfg.max_iters=2') == 0
    )
    state = read_checkpoint(tmp_path / 'run' / 'latest.pth')
    state['meta']['config'] = f'open({str(tmp_path / "payload_ran")!r}, "w").close()'
    torch.save(state, tmp_path / 'trap.pth')
    assert tool('train', config, '--work-dir', tmp_path / 'again', '--resume', tmp_path / 'trap.pth') == 0
    assert not was_run(tmp_path)


def test_a_config_that_cannot_be_tested_says_so(tmp_path: Path) -> None:
    (tmp_path / 'w.pth').touch()
    with pytest.raises(ValueError, match='test_dataloader, test_evaluator'):
        prepare_testing(Config({'test_cfg': {}, 'model': {}}), tmp_path / 'w.pth')


# Smaller parts.


def test_shuffling_the_text_needs_a_model_with_text(tmp_path: Path) -> None:
    from ovd.training.options import prepare_testing

    checkpoint = tmp_path / 'x.pth'
    checkpoint.touch()
    sections = {'test_dataloader': {}, 'test_cfg': {}, 'test_evaluator': {}}
    config = Config({'model': {'type': 'ovd.LSeg', 'text': {'vocabulary': 'shapes'}}, **sections})
    prepare_testing(config, checkpoint, shuffle_text=True)
    assert config.model.text.shuffled is True
    captions = {'dataset': {'type': 'RepeatDataset', 'dataset': {'type': 'ovd.GroundingDataset'}}}
    config = Config({'model': {'type': 'ovd.GLIP', 'text': {}}, **sections, 'test_dataloader': captions})
    prepare_testing(config, checkpoint, shuffle_text=True)
    assert config.test_dataloader.dataset.dataset.shuffle_captions is True
    assert 'shuffled' not in config.model.text
    with pytest.raises(ValueError, match=r'--shuffle-text.*ToyLine'):
        prepare_testing(Config({'model': {'type': 'ToyLine'}, **sections}), checkpoint, shuffle_text=True)


def test_another_vocabulary_reaches_model_and_data(tmp_path: Path) -> None:
    (tmp_path / 'w.pth').touch()
    config = Config(
        {
            'model': {'type': 'ovd.ViLD', 'text': {'embeddings': 'x.vocab.safetensors'}},
            'test_dataloader': {'dataset': {'type': 'RepeatDataset', 'dataset': {'vocabulary': 'coco'}}},
            'test_cfg': {},
            'test_evaluator': [],
            'train_cfg': {},
        }
    )
    prepare_testing(config, tmp_path / 'w.pth', 'star, ring')
    assert config.model.text == {'vocabulary': 'star, ring'}
    assert config.test_dataloader.dataset.dataset.vocabulary == 'star, ring'
    assert 'train_cfg' not in config
    del config.model['text']
    with pytest.raises(ValueError, match=r'ovd\.ViLD'):
        prepare_testing(config, tmp_path / 'w.pth', 'star')


def test_reports_are_plain_json() -> None:
    value = {'a': float('nan'), 2: [torch.tensor(1.5), (True, None)], 'path': Path('x')}
    assert to_json(value) == {'a': None, '2': [1.5, [True, None]], 'path': 'x'}
