"""Reading an experiment's config, and refusing it early when it cannot be what the user meant."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

PathLike = str | os.PathLike[str]

RUNNER_SECTIONS = """
    model train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr
    optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks data_preprocessor
    load_from resume launcher env_cfg log_processor log_level visualizer vis_backends default_scope randomness
    experiment_name work_dir runner_type custom_imports model_wrapper_cfg compile activation_checkpointing
    sync_bn efficient_conv_bn_eval find_unused_parameters
"""
HELPER_SECTIONS = """
    train_pipeline val_pipeline test_pipeline dataset_type data_root backend_args tta_model tta_pipeline
    num_classes img_scales batch_size max_epochs max_iters norm_cfg optimizer class_names
"""
OUR_SECTIONS = 'region_cache pseudo_labels needs vocabulary'
SECTIONS = frozenset(f'{RUNNER_SECTIONS} {HELPER_SECTIONS} {OUR_SECTIONS}'.split())
RESEMBLANCE = 0.8


class ConfigError(ValueError):
    """Everything wrong with a config, in one message."""


def load_config(path: PathLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply overrides, and refuse misspelled sections.

    Args:
        path: a mmengine config file (``.py``, ``.json``, ``.yaml``).
        overrides: dotted keys and their values, as in ``--cfg-options``.
    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        ConfigError: the file cannot be read, or top-level names resemble known sections without being one;
            all such names are listed.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'config {path} does not exist')
    try:
        config = Config.fromfile(os.fspath(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f'config {path}: {error}') from None
    except Exception as error:
        raise ConfigError(f'config {path} cannot be read: {type(error).__name__}: {error}') from error
    own_sections = list(config)
    problems = [_describe_section(name, SECTIONS) for name in own_sections]
    problems += _apply(config, overrides or {}, SECTIONS.union(own_sections))
    problems = [problem for problem in problems if problem]
    if problems:
        raise ConfigError(f'config {path}: ' + '; '.join(problems))
    return config


def _describe_section(name: str, known: frozenset[str]) -> str:
    if name in known or name.startswith('_'):
        return ''
    similar = difflib.get_close_matches(name, known, n=1, cutoff=RESEMBLANCE)
    return f'unknown section {name!r}, did you mean {similar[0]!r}?' if similar else ''


def _apply(config: Config, overrides: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """Merge ``overrides`` one by one; return what is wrong with them."""
    problems = []
    for key, value in overrides.items():
        top = key.split('.', 1)[0]
        problem = _describe_section(top, known)
        if not problem and top not in known:
            problem = f'option {key!r}: the config has no section {top!r}'
        if problem:
            problems.append(problem)
            continue
        try:
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError, ValueError) as error:
            problems.append(f'option {key!r}={value!r} cannot be applied: {error}')
    return problems


def check_needs(config: Mapping[str, Any]) -> None:
    """Refuse to start while files are missing that the config says it ``needs``.

    ``needs`` is a list of ``dict(path=..., what=..., how=...)``: a file or folder, what it is, how to get it.

    Raises:
        FileNotFoundError: lists every missing path with its instruction.
    """
    missing = []
    for index, need in enumerate(config.get('needs') or ()):
        unknown = set(need) - {'path', 'what', 'how'}
        if unknown or 'path' not in need:
            raise ConfigError(f'needs[{index}] takes path, what and how, got {sorted(need)}')
        if not Path(need['path']).exists():
            what = f' ({need["what"]})' if need.get('what') else ''
            how = f': {need["how"]}' if need.get('how') else ''
            missing.append(f'{need["path"]}{what}{how}')
    if missing:
        plural = 'files are' if len(missing) > 1 else 'file is'
        raise FileNotFoundError(f'{len(missing)} needed {plural} missing: ' + '; '.join(missing))
