"""A regression model small enough to train in a test through the real tools, with everything random in it.

Augmentation draws from numpy, the model from torch (dropout), the sampler shuffles: a resumed run ends in the
same weights only if all of them are resumed.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import Tensor, nn


@DATASETS.register_module()
class ToyNumbers(BaseDataset):
    """``length`` noisy points of the line y = 2x + 1."""

    METAINFO = {'classes': ('line',)}

    def __init__(self, length: int = 24, **kwargs: Any) -> None:
        self.length = length
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{'x': index / self.length} for index in range(self.length)]

    def prepare_data(self, idx: int) -> dict[str, Tensor]:
        x = self.get_data_info(idx)['x'] + float(np.random.normal(0, 0.1))  # noqa: NPY002
        return {'x': torch.tensor([x]), 'y': torch.tensor([2 * x + 1])}


@MODELS.register_module()
class ToyLine(BaseModel):
    """One hidden layer with dropout."""

    def __init__(self, width: int = 8, init_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Sequence[Tensor], y: Sequence[Tensor], mode: str = 'tensor') -> Any:
        error = (self.layers(torch.stack(list(x))) - torch.stack(list(y))).abs()
        if mode == 'loss':
            return {'loss': error.mean()}
        return [{'error': value} for value in error]


@METRICS.register_module()
class ToyError(BaseMetric):
    """Mean absolute error."""

    default_prefix = 'toy'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        self.results.extend(float(sample['error']) for sample in data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {'error': float(np.mean(results)), 'undefined': float('nan')}


@HOOKS.register_module()
class ToyKill(Hook):
    """Kills the process like ``kill -9``: after iteration ``at``, or half-way through save number ``at``."""

    priority = 'LOWEST'

    def __init__(self, at: int, while_saving: bool = False) -> None:
        self.at = at
        self.while_saving = while_saving
        self.saves = 0

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if not self.while_saving and runner.iter + 1 == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.saves += 1
        if self.while_saving and self.saves == self.at:
            torch.save = self._save_half

    def _save_half(self, state: Any, path: Path) -> None:
        path.write_bytes(b'half a checkpoint')
        os.kill(os.getpid(), signal.SIGKILL)


CONFIG = """
custom_imports = dict(imports=['tests.toys.runs'])
default_scope = 'mmengine'
model = dict(type='ToyLine')
train_dataloader = dict(
    batch_size=4, num_workers={workers}, dataset=dict(type='ToyNumbers'),
    sampler=dict(type={sampler!r}, shuffle=True))
test_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='ToyNumbers', test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False))
{train_cfg}
test_cfg = dict()
test_evaluator = dict(type='ToyError')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=30)]
randomness = dict(seed=3)
"""

BY_ITERATION = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters={length}, val_interval=1000)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=5),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval={interval}, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
"""

BY_EPOCH = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={length})
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=5),
    checkpoint=dict(type='CheckpointHook', interval={interval}, max_keep_ckpts=2))
"""


def write_config(
    folder: Path,
    by_epoch: bool = False,
    length: int = 20,
    interval: int = 5,
    workers: int = 0,
    extra: str = '',
) -> Path:
    """A config for ``tools/train.py`` and ``tools/test.py``; ``length`` is in iterations or epochs."""
    train_cfg = (BY_EPOCH if by_epoch else BY_ITERATION).format(length=length, interval=interval)
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    path = folder / 'toy.py'
    path.write_text(CONFIG.format(workers=workers, sampler=sampler, train_cfg=train_cfg) + extra)
    return path
