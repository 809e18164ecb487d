"""Write the options of the command-line tools into a config."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from ..files import require_file
from ..models.base import check_checkpoint
from ..optional import import_optional
from ..options import check_option
from ..registry import DATASETS, MODELS
from .checks import check_region_store, dataset_configs
from .hooks import find_latest


def prepare_training(
    config: Config, resume: str | None = None, amp: bool = False, seed: int | None = None
) -> None:
    """Write the options of ``tools/train.py`` into ``config``.

    Args:
        resume: a path, or ``'auto'``: the latest checkpoint of ``config.work_dir``, if there is one.
        amp: mixed precision, float16 with loss scaling on a GPU, bfloat16 on a CPU. Also applied to configs
            with ``AmpOptimWrapper``, which does not work on a CPU.
        seed: overrides that of the config.
    """
    if resume == 'auto':
        latest = find_latest(config.work_dir)
        config.resume = latest is not None
        if latest is not None:
            config.load_from = str(latest)
    elif resume is not None:
        require_file(resume, 'checkpoint to resume from')
        config.resume, config.load_from = True, resume
    if amp or (config.get('optim_wrapper') or {}).get('type') == 'AmpOptimWrapper':
        _use_amp(config)
    check_region_store(config)
    share_text_encoder(config)
    if config.get('load_from'):
        require_file(config.load_from, 'checkpoint to start from (load_from)')
    if seed is not None:
        config.setdefault('randomness', {})['seed'] = seed


def share_text_encoder(config: Mapping[str, Any]) -> None:
    """Give ``ovd.BuildPrompt`` of the training data the text encoder of the model, unless it names one."""
    loader = config.get('train_dataloader')
    text: Any = (config.get('model') or {}).get('text')
    for dataset in dataset_configs(loader['dataset']) if loader and text else ():
        for step in dataset.get('pipeline') or ():
            if step.get('type') == 'ovd.BuildPrompt':
                step.setdefault('encoder', text['encoder'])
                step.setdefault('final', text.get('final', ''))


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
    check_option('--amp: optim_wrapper.type', kind, ('OptimWrapper', 'AmpOptimWrapper'))
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    else:
        wrapper.type = 'ovd.BFloat16OptimWrapper'
        wrapper.pop('loss_scale', None)
        wrapper.pop('dtype', None)


def prepare_testing(
    config: Config,
    checkpoint: str | os.PathLike[str] | None,
    vocabulary: str | None = None,
    shuffle_text: bool = False,
) -> None:
    """Write the options of ``tools/test.py`` into ``config``; drop the training sections.

    Args:
        checkpoint: None for models without weights of their own.
        vocabulary: classes of model and test data, instead of those of the config.
        shuffle_text: sanity check: exchange the text embeddings of novel classes, or if the test data are
            captions, exchange phrases between images.
    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the config has no test sections, or an option does not apply to its model or data.
    """
    if checkpoint is not None:
        require_file(checkpoint, 'checkpoint')
    absent = [name for name in ('test_dataloader', 'test_cfg', 'test_evaluator') if config.get(name) is None]
    if absent:
        raise ValueError(f'the config cannot be tested: it has no {", ".join(absent)}')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmdet')):
        check_checkpoint(MODELS.get(config.model.type), checkpoint)
    for name in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'):
        config.pop(name, None)
    for name in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        config.pop(name, None)
    config.load_from = None if checkpoint is None else str(checkpoint)
    config.resume = False
    text = config.model.get('text')
    if text is None and (vocabulary is not None or shuffle_text):
        option = '--shuffle-text' if vocabulary is None else '--vocabulary'
        raise ValueError(f'{option}: the model {config.model.type!r} has no `text`')
    datasets = list(dataset_configs(config.test_dataloader.get('dataset', {})))
    if vocabulary is not None:
        own = [dataset.type for dataset in datasets if _provides_class_names(dataset)]
        if own:
            raise ValueError(f'--vocabulary: {own[0]} has its own class names')
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
    """Exchange the phrases of captions between images, or the text embeddings of the model."""
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
            f'--shuffle-text exchanges the phrases of ovd.GroundingDataset for {model.type}, but this '
            f'config tests on {datasets[0].get("type")}'
        )
    model.text.shuffled = True


def _provides_class_names(dataset: Mapping[str, Any]) -> bool:
    """Whether samples of a data set, given as its config, carry class names or sentences."""
    from ..datasets.sample_traits import SampleTraits

    kind = _kind(dataset)
    declares = kind is not None and issubclass(kind, SampleTraits) and kind.provides_class_names
    return declares and dataset.get('label_map') is None


def _kind(dataset: Mapping[str, Any]) -> type | None:
    """Class of a data set, given as its config; None for classes of other packages."""
    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) and kind.startswith('ovd.') else None
