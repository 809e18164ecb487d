"""A diverging run ends with an error and keeps its last good checkpoint; bad weights are not loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ovd.checkpoints.loading import find_not_finite, load_for_inference
from ovd.training.hooks import CheckpointHook, DivergenceHook, TrainingDivergedError
from tests.cli.test_tools import tool
from tests.toys.runs import write_config

NAN = float('nan')


def step(hook: DivergenceHook, runner: Any, losses: list[float]) -> None:
    for loss in losses:
        runner.iter += 1
        hook.after_train_iter(runner, 0, None, {'loss': torch.tensor(loss), 'loss_cls': torch.tensor(0.5)})


def test_a_single_bad_step_is_no_divergence(tmp_path: Path) -> None:
    runner = SimpleNamespace(iter=-1, max_iters=100, work_dir=str(tmp_path))
    hook = DivergenceHook(patience=3, interval=1)
    step(hook, runner, [1.0, NAN, 0.9, NAN, NAN, 0.8, 0.7])
    assert int(hook._bad) == 0


def test_consecutive_bad_steps_end_the_run(tmp_path: Path) -> None:
    runner = SimpleNamespace(iter=-1, max_iters=100, work_dir=str(tmp_path))
    hook = DivergenceHook(patience=3, interval=5)
    step(hook, runner, [1.0, NAN, float('inf'), NAN])
    with pytest.raises(TrainingDivergedError, match='iteration 5') as caught:
        step(hook, runner, [NAN])
    assert 'loss_cls 0.5' in str(caught.value)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    model.weight.data[0, 1] = NAN
    hook = CheckpointHook(interval=1, by_epoch=False)
    runner = SimpleNamespace(iter=6, model=model, work_dir=str(tmp_path))
    with pytest.raises(TrainingDivergedError, match=r'7 iterations weight .*iter_7'):
        hook._write(runner, 'iter_7.pth', {})


def test_weights_that_are_not_finite_are_not_loaded() -> None:
    model = nn.Linear(2, 1)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert find_not_finite(tensors) is None
    tensors['bias'][0] = float('inf')
    tensors['steps'] = torch.tensor(3)
    with pytest.raises(ValueError, match=r'some\.pth: bias'):
        load_for_inference(model, tensors, source='some.pth')


def test_a_diverging_training_fails_and_keeps_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    assert tool('train', config, '--work-dir', tmp_path / 'run') == 0
    good = (tmp_path / 'run' / 'latest.pth').resolve()
    before = good.read_bytes()
    rate = 'optim_wrapper.optimizer.lr=1e38'
    code = tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options', rate)
    assert code != 0
    assert 'finite' in capsys.readouterr().err
    assert good.read_bytes() == before
