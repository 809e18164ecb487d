"""mmengine's Runner as our tools use it: a readable console, checked weights, CPU launchers."""

import copy
import logging
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_distributed
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..checkpoints.comparing import compare
from ..checkpoints.loading import load_for_inference, load_into
from ..checkpoints.reading import read_checkpoint
from ..optional import import_optional
from ..registry import DATASETS, MODELS
from .hooks import find_latest

if TYPE_CHECKING:
    from ..models.base import OpenVocabularyModel

CONSOLE_NOISE = (
    'Loads checkpoint by',
    'Exp name:',
    'Checkpoints will be saved to',
    'Distributed training is not used',
    'Hooks will be executed',
    'FileClient',
    '"FileClient"',
    '"HardDiskBackend"',
    'paramwise_options',
    'Dataset list has no metainfo',
    'Auto resumed',
    'Advance dataloader',
    'Saving checkpoint',
)


_CONSOLE_DETAILS = re.compile(r'(?:base_lr|data_time|memory): \S+ *')
_RUNS_STARTED: Counter[str] = Counter()


class ToolRunner(Runner):
    """The Runner of ``tools/train.py`` and ``tools/test.py``.

    - The console shows progress, results and warnings; environment, config and hook tables go to the log
      file.
    - Weights that do not fit the model are an error when testing or resuming; with ``load_from`` (starting
      from other weights) the differences are logged, and an error if nothing fits.
    - ``--launcher pytorch`` without a GPU uses gloo.
    - ``channels_last = True`` in the config lays out the weights of convolutions channels-last, and so the
      maps between them: faster on a CPU.
    """

    def build_logger(
        self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setFormatter(_ConsoleFormatter())
                handler.addFilter(_is_for_console)
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
        # Loggers and message hubs are found by experiment name and time in seconds; a process may start two
        # runs within one.
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
        """Train; say where the log and the weights are."""
        self.logger.info(f'Training {self._model_name}; log and checkpoints go to {self.work_dir}')
        model = super().train()
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
        """The loop, whose data must number the model's words alike."""
        from ..datasets.sample_traits import inner_datasets, metainfo_of
        from ..models.base import OpenVocabularyModel

        model = self.model.module if is_model_wrapper(self.model) else self.model
        dataset = loop.dataloader.dataset
        if isinstance(model, OpenVocabularyModel):
            # Samples may name their own classes for a model that reads sentences.
            for each in _datasets_using_model_vocabulary(dataset) if model.reads_sentences else [dataset]:
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
        """Load weights, and say in one line what did not fit; the log file names every key.

        Raises:
            ValueError: nothing fits; or something does not and the run tests or resumes these weights.
        """
        content = read_checkpoint(filename, map_location=map_location)
        checkpoint = content if 'state_dict' in content else {'state_dict': content}
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        tensors = checkpoint['state_dict']
        for pattern, replacement in revise_keys:
            tensors = {re.sub(pattern, replacement, key): value for key, value in tensors.items()}
        differences = compare(model, tensors).listing()
        if differences:  # of several lines, and so for the log file
            self.logger.info(f'What does not fit in {filename}, key by key:\n{differences}')
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


def _datasets_using_model_vocabulary(dataset: Any) -> Iterator[Any]:
    """Inner data sets that rely on the model's vocabulary: their samples carry no class names."""
    from mmdet.datasets import BaseDetDataset

    from ..datasets.sample_traits import inner_datasets, provides_class_names

    for each in inner_datasets(dataset):
        is_named_by_host = isinstance(each, BaseDetDataset) and each.return_classes
        if not (is_named_by_host or provides_class_names(each)):
            yield each


def check_packing(model: 'OpenVocabularyModel', dataset: Any) -> None:
    """Refuse a pipeline that drops metainfo which its samples have and the model reads.

    Raises:
        ValueError: names what is missing from ``meta_keys``.
    """
    from ..datasets.sample_traits import Packing, pipeline_steps, sample_keys

    offered = sample_keys(dataset)
    for step in pipeline_steps(dataset):
        for key in model.sample_keys if isinstance(step, Packing) else ():
            if key in offered and key not in step.meta_keys:
                raise ValueError(
                    f'{type(step).__name__} leaves out {key!r}, which samples of {type(dataset).__name__} '
                    f'have for {type(model).__name__}: put it into meta_keys'
                )


def check_classes(model: 'OpenVocabularyModel', metainfo: Mapping[str, Any]) -> None:
    """Refuse data whose classes are other than the model's words, or in another order.

    Labels are places in the vocabulary: each would be learned, or scored, as another word.

    Raises:
        ValueError: names the first class that differs.
    """
    classes = metainfo.get('classes')
    if classes is None:
        return
    try:
        vocabulary = model.vocabulary
    except ValueError:  # a model without words needs none to be trained
        return
    if tuple(classes) in (vocabulary.names, vocabulary.labels):
        return
    pairs = list(zip_longest(vocabulary.labels, classes))
    first = next(index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
    ours, theirs = pairs[first]
    raise ValueError(
        f'class {first} is {theirs!r} in the data ({len(classes)} classes) and {ours!r} in the model '
        f'({len(vocabulary)}): data set and model must share one vocabulary'
    )


def _is_for_console(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if message.startswith(CONSOLE_NOISE) or message.endswith('is skipped since its requires_grad=False'):
        return False
    if record.levelno > logging.INFO:
        return True
    in_setup = '\n' in message and Path(record.pathname).name in ('runner.py', 'base_module.py')
    return not in_setup


class _ConsoleFormatter(logging.Formatter):
    """Time and message; the level only when it is more than information."""

    def __init__(self) -> None:
        super().__init__('%(asctime)s', datefmt='%H:%M:%S')

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f'{record.levelname.lower()}: ' if record.levelno > logging.INFO else ''
        message = record.message
        if message.startswith(('Iter(', 'Epoch(')):
            message = _CONSOLE_DETAILS.sub('', message)
        return f'{record.asctime}  {level}{message}'


def build_runner(config: Config) -> ToolRunner:
    """Build the Runner of a config, with our hooks: repeatable runs, logged losses of all processes."""
    config = copy.deepcopy(config)
    hooks = config.setdefault('default_hooks', {})
    checkpoint = hooks.setdefault('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    if checkpoint is not None and checkpoint['type'] == 'CheckpointHook':
        checkpoint['type'] = 'ovd.CheckpointHook'
    # Metrics over iterations, as losses are; mmengine counts them by epoch, which is 0 for many trainings.
    logger = hooks.get('logger', {'type': 'LoggerHook'})
    hooks['logger'] = logger and {'log_metric_by_epoch': False, **logger}
    custom = list(config.get('custom_hooks') or [])
    given = {hook.get('type') for hook in custom if isinstance(hook, dict)}
    ours = ('ovd.RepeatableHook', 'ovd.MeanLossHook', 'ovd.ProgressHook', 'ovd.CurvesHook')
    custom += [{'type': name} for name in ours if name not in given]
    config.custom_hooks = custom
    runner = ToolRunner.from_cfg(config)
    assert isinstance(runner, ToolRunner)
    return runner


def prepare_training(
    config: Config, resume: str | None = None, amp: bool = False, seed: int | None = None
) -> None:
    """Write the options of ``tools/train.py`` into ``config``.

    Args:
        resume: a path, or ``'auto'``: the latest checkpoint of ``config.work_dir``, if there is one.
        amp: mixed precision: float16 with loss scaling on GPU, bfloat16 on CPU; also where the config has an
            ``AmpOptimWrapper``, which runs on no CPU.
        seed: overrides the config's.
    """
    if resume == 'auto':
        latest = find_latest(config.work_dir)
        config.resume = latest is not None
        if latest is not None:
            config.load_from = str(latest)
    elif resume is not None:
        if not os.path.isfile(resume):
            raise FileNotFoundError(f'checkpoint {resume} to resume from does not exist')
        config.resume, config.load_from = True, resume
    if amp or (config.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper':
        _use_amp(config)
    check_region_store(config)
    start = config.get('load_from')
    if start and not os.path.isfile(start):
        raise FileNotFoundError(f'checkpoint {start} to start from (load_from) does not exist')
    if seed is not None:
        config.setdefault('randomness', {})['seed'] = seed


def check_region_store(config: Mapping[str, Any]) -> None:
    """Refuse to train on the store of ``region_cache`` where it is absent, unfinished or cut by other rules.

    Only a store that the training data read under the path of that section is looked at; one under another
    path is taken as it is.

    Raises:
        FileNotFoundError, ValueError: see ``RegionStore``; other crops than the section asks for.
    """
    from ..regions.crops import CropPolicy
    from ..regions.store import RegionStore

    section, loader = config.get('region_cache'), config.get('train_dataloader')
    if section is None or loader is None:
        return
    steps = [step for dataset in _data_sets(loader['dataset']) for step in dataset.get('pipeline', ())]
    if any(step.get('store') == section['store'] for step in steps):
        crops = CropPolicy(**section.get('crops') or {})
        RegionStore(section['store']).check(crops=crops.to_dict())


def log_to_tensorboard(config: Config) -> None:
    """Let a run write its losses and metrics for TensorBoard too, below its work directory.

    Raises:
        ImportError: tensorboard is not installed.
    """
    import_optional('tensorboard', 'tensorboard', '--tensorboard')
    visualizer = dict(config.get('visualizer') or {'type': 'Visualizer'})
    backends = list(visualizer.get('vis_backends') or [{'type': 'LocalVisBackend'}])
    if not any(backend['type'] == 'TensorboardVisBackend' for backend in backends):
        backends.append({'type': 'TensorboardVisBackend'})
    config.visualizer = {**visualizer, 'vis_backends': backends}


def _use_amp(config: Config) -> None:
    wrapper = config.get('optim_wrapper')
    if wrapper is None:
        raise ValueError('--amp: the config has no optim_wrapper')
    kind = wrapper.setdefault('type', 'OptimWrapper')
    if kind == 'ovd.BFloat16OptimWrapper':
        return
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f"--amp works with optim_wrapper.type 'OptimWrapper', the config has {kind!r}")
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    else:
        wrapper.type = 'ovd.BFloat16OptimWrapper'
        wrapper.pop('loss_scale', None)
        wrapper.pop('dtype', None)


def prepare_testing(
    config: Config,
    checkpoint: str | os.PathLike[str],
    vocabulary: str | None = None,
    shuffle_text: bool = False,
) -> None:
    """Write the options of ``tools/test.py`` into ``config``; the training sections are dropped.

    Args:
        vocabulary: classes to test with instead of the config's; the model and the test data both get it.
        shuffle_text: a control. Novel classes get each other's vectors; where the test data are captions,
            their phrases get the words of other pictures.
    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the config has no test, or an option that its model or its data have no use for.
    """
    if not os.path.isfile(checkpoint):
        raise FileNotFoundError(f'checkpoint {checkpoint} does not exist')
    absent = [name for name in ('test_dataloader', 'test_cfg', 'test_evaluator') if config.get(name) is None]
    if absent:
        raise ValueError(f'the config cannot be tested, it has no {", ".join(absent)}')
    for name in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'):
        config.pop(name, None)
    for name in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        config.pop(name, None)
    config.load_from, config.resume = str(checkpoint), False
    text = config.model.get('text')
    if text is None and (vocabulary is not None or shuffle_text):
        option = '--shuffle-text' if vocabulary is None else '--vocabulary'
        raise ValueError(f'{option}: the model {config.model.type!r} of this config takes no text')
    datasets = list(_data_sets(config.test_dataloader.get('dataset', {})))
    if vocabulary is not None:
        own = [dataset.type for dataset in datasets if _provides_class_names(dataset)]
        if own:
            raise ValueError(f'--vocabulary: {own[0]} asks for the words of its own files')
        text.pop('embeddings', None)
        text.vocabulary = vocabulary
        for dataset in datasets:
            dataset['vocabulary'] = vocabulary
    if shuffle_text:
        _shuffle_text(config.model, datasets)


def dump_predictions(config: Config, out_file: str | os.PathLike[str]) -> None:
    """Let a test write its predictions too, as COCO results; see ``CocoResults``."""
    evaluators = config.test_evaluator
    given = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
    config.test_evaluator = [*given, {'type': 'ovd.CocoResults', 'out_file': os.fspath(out_file)}]


def _shuffle_text(model: ConfigDict, datasets: list[Any]) -> None:
    """Let words say nothing: in the captions of the data sets, else in the model."""
    from ..datasets.grounding.dataset import GroundingDataset
    from ..models.base import OpenVocabularyModel

    kinds = [(dataset, _kind(dataset)) for dataset in datasets if _provides_class_names(dataset)]
    captions = [dataset for dataset, kind in kinds if kind and issubclass(kind, GroundingDataset)]
    for dataset in captions:
        dataset['shuffle_captions'] = True
    if captions:
        return
    system = MODELS.get(model.type)
    if issubclass(system, OpenVocabularyModel) and system.reads_sentences:
        raise ValueError(
            f'--shuffle-text: for {model.type} the words of captions are exchanged, those of '
            f'ovd.GroundingDataset; this config tests on {datasets[0].get("type")}'
        )
    model.text.shuffled = True


def _provides_class_names(dataset: Mapping[str, Any]) -> bool:
    """Whether samples of a data set, given as its config, carry class names or sentences."""
    from ..datasets.sample_traits import SampleTraits

    kind = _kind(dataset)
    declares = kind is not None and issubclass(kind, SampleTraits) and kind.provides_class_names
    return declares and dataset.get('label_map') is None


def _kind(dataset: Mapping[str, Any]) -> type | None:
    """The class of a data set's config; None for those of other packages."""
    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) and kind.startswith('ovd.') else None


def _data_sets(dataset: Any) -> Iterator[Any]:
    """The configs of all data sets inside wrappers."""
    if isinstance(dataset, list | tuple):
        for part in dataset:
            yield from _data_sets(part)
    elif 'dataset' in dataset or 'datasets' in dataset:
        yield from _data_sets(dataset['dataset' if 'dataset' in dataset else 'datasets'])
    else:
        yield dataset


def evaluate(runner: ToolRunner, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Run the test loop; return metrics, per-class results and protocol as JSON values.

    Args:
        protocol: what the tool knows about the run (config, checkpoint), joined with what
            model and metrics know.
    """
    from ..evaluation.reporting_metric import ReportingMetric
    from ..models.base import OpenVocabularyModel

    metrics = runner.test_loop.evaluator.metrics
    reporting = [metric for metric in metrics if isinstance(metric, ReportingMetric)]
    for metric in reporting:
        metric.protocol.update(protocol)
    results = runner.test()
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    described = model.describe() if isinstance(model, OpenVocabularyModel) else {}
    report: dict[str, Any] = {'metrics': results, 'protocol': {**protocol, **described}}
    for metric in reporting:
        own = metric.report
        tables = {key: value for key, value in own.items() if key not in ('metrics', 'protocol')}
        for target, entries in ((report['protocol'], own.get('protocol', {})), (report, tables)):
            for key, value in entries.items():
                # Where two metrics differ, the later one's entry says whose it is.
                differs = key in target and target[key] != value
                target[f'{metric.prefix or type(metric).__name__}/{key}' if differs else key] = value
    return to_json(report)


def to_json(value: Any) -> Any:
    """Plain JSON values: numpy and torch scalars become numbers, what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, 'tolist'):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
