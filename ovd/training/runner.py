"""mmengine's Runner as our tools use it: a readable console, checked weights, CPU launchers."""

import copy
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from ..checkpoints.comparing import compare
from ..checkpoints.loading import load_for_inference, load_into
from ..checkpoints.reading import read_checkpoint
from ..config.errors import did_you_mean
from .checks import check_classes, check_packing, datasets_using_model_vocabulary
from .console import ConsoleFormatter, is_for_console
from .hooks import find_latest

_RUNS_STARTED: Counter[str] = Counter()


class ToolRunner(Runner):
    """The Runner of ``tools/train.py`` and ``tools/test.py``.

    - The console shows progress, results and warnings; environment, config and hook tables are written to the
      log file only.
    - When testing or resuming, weights that do not fit the model are an error. With ``load_from``,
      differences are logged; it is an error if no tensor fits.
    - ``--launcher pytorch`` without a GPU uses gloo.
    - ``channels_last = True`` in the config stores convolution weights and feature maps channels-last, which
      is faster on a CPU.
    """

    def build_logger(
        self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setFormatter(ConsoleFormatter())
                handler.addFilter(is_for_console)
        return logger

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        env_cfg = copy.deepcopy(env_cfg)
        if self.distributed and not torch.cuda.is_available() and not is_distributed():
            if self.launcher != 'pytorch':
                raise ValueError(
                    f'--launcher {self.launcher} needs GPUs; without one start the tool with torchrun and '
                    '--launcher pytorch'
                )
            torch.distributed.init_process_group(backend='gloo')
        if self.distributed:
            os.environ.setdefault('MKL_NUM_THREADS', '1')
        super().setup_env(env_cfg)
        # mmengine finds loggers and message hubs by experiment name and time in seconds, but a process may
        # start two runs within a second.
        number = _RUNS_STARTED[self._timestamp] = _RUNS_STARTED[self._timestamp] + 1
        if number > 1:
            self._timestamp += f'_{number}'

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        if self.cfg.get('channels_last', False):
            model.to(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*broadcast_buffers', FutureWarning)
            if (
                not self.distributed
                or torch.cuda.is_available()
                or model_wrapper_cfg
                or is_model_wrapper(model)
            ):
                return super().wrap_model(model_wrapper_cfg, model)
            return MMDistributedDataParallel(
                module=model,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )

    def train(self) -> nn.Module:
        """Train; log where log file and weights are."""
        self.logger.info(f'Training {self._model_name}; log and checkpoints go to {self.work_dir}')
        try:
            model = super().train()
        except KeyboardInterrupt:
            self.logger.warning(describe_interruption(self.work_dir, self.iter))
            raise
        latest = find_latest(self.work_dir)
        if latest is not None:
            self.logger.info(f'Trained weights: {latest}')
        return model

    def build_train_loop(self, loop: Any) -> Any:
        return self._checked(super().build_train_loop(loop), training=True)

    def build_val_loop(self, loop: Any) -> Any:
        return self._checked(super().build_val_loop(loop))

    def build_test_loop(self, loop: Any) -> Any:
        return self._checked(super().build_test_loop(loop))

    def _checked(self, loop: Any, training: bool = False) -> Any:
        """Return the loop after checking that its data have the classes of the model."""
        from ..datasets.sample_traits import inner_datasets, metainfo_of
        from ..models.base import OpenVocabularyModel

        model = self.model.module if is_model_wrapper(self.model) else self.model
        dataset = loop.dataloader.dataset
        if isinstance(model, OpenVocabularyModel):
            # Samples may name their own classes for a model that reads sentences.
            for each in datasets_using_model_vocabulary(dataset) if model.reads_sentences else [dataset]:
                check_classes(model, metainfo_of(each))
            if training:
                model.check_training_classes(metainfo_of(dataset))
                for each in inner_datasets(dataset):
                    check_packing(model, each)
        return loop

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = False,
        revise_keys: Any = ((r'^module\.', ''),),
    ) -> dict[str, Any]:
        """Load weights; log differences in one line, and key by key in the log file.

        Raises:
            ValueError: no tensor fits; or when testing or resuming, a tensor does not fit.
        """
        content = read_checkpoint(filename, map_location=map_location)
        checkpoint = content if 'state_dict' in content else {'state_dict': content}
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        tensors = checkpoint['state_dict']
        for pattern, replacement in revise_keys:
            tensors = {re.sub(pattern, replacement, key): value for key, value in tensors.items()}
        differences = compare(model, tensors).listing()
        if differences:  # several lines: log file only
            self.logger.info(f'Tensors of {filename} that do not fit:\n{differences}')
        if self._train_loop is not None and not self._resume:
            report = load_into(model, tensors, strict=strict, source=filename)
            if not report.is_complete:
                self.logger.warning(f'Loaded {filename} in part: {report}')
        else:
            report = load_for_inference(model, tensors, source=filename)
        if report.is_complete:
            self.logger.info(f'Loaded {filename}: {report}')
        self._has_loaded = True
        return checkpoint


def build_runner(config: Config) -> ToolRunner:
    """Build the Runner of a config, and add our hooks."""
    config = copy.deepcopy(config)
    check_optimizer(config)
    hooks = config.setdefault('default_hooks', {})
    checkpoint = hooks.setdefault('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    if checkpoint is not None and checkpoint['type'] == 'CheckpointHook':
        checkpoint['type'] = 'ovd.CheckpointHook'
    # Metrics over iterations, as losses are; mmengine counts them by epoch, which is 0 for many trainings.
    logger = hooks.get('logger', {'type': 'LoggerHook'})
    hooks['logger'] = logger and {'log_metric_by_epoch': False, **logger}
    custom = list(config.get('custom_hooks') or [])
    given = {hook.get('type') for hook in custom if isinstance(hook, dict)}
    ours = (
        'ovd.RepeatableHook',
        'ovd.DivergenceHook',
        'ovd.MeanLossHook',
        'ovd.ProgressHook',
        'ovd.CurvesHook',
    )
    custom += [{'type': name} for name in ours if name not in given]
    config.custom_hooks = custom
    runner = ToolRunner.from_cfg(config)
    assert isinstance(runner, ToolRunner)
    return runner


def describe_interruption(work_dir: str | os.PathLike[str], step: int) -> str:
    """Which checkpoint an interrupted run kept, and how to go on."""
    latest = find_latest(work_dir)
    if latest is None:
        return f'Interrupted after {step} steps, before the first checkpoint: nothing was kept'
    name = latest.resolve().name
    return f'Interrupted after {step} steps; kept {latest} ({name}). Go on with the same command and --resume'


def check_optimizer(config: Mapping[str, Any]) -> None:
    """Refuse an optimizer by a name that is not registered; mmengine calls the None that it finds."""
    kind = ((config.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        hint = did_you_mean(kind, OPTIMIZERS.module_dict)
        raise ValueError(f'optim_wrapper.optimizer.type: no optimizer {kind!r}{hint}')
