"""Reading a config: overrides, values that follow their variables, and checks of what comes out.

Reading order: load_config, its helpers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .checks import check_config, check_override
from .collection import find_config
from .errors import ConfigError, did_you_mean
from .variables import ConfigFile, as_expression, evaluate, is_literal, parse_file

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
    num_classes img_scales batch_size max_epochs max_iters norm_cfg optimizer class_names vocabulary
"""
OUR_SECTIONS = 'region_cache pseudo_labels needs channels_last calibration_dataloader'
USED_SECTIONS = frozenset(f'{RUNNER_SECTIONS} {OUR_SECTIONS}'.split())
# Sections with plain values, from which a config may compute others.
PLAIN_SECTIONS = frozenset(['load_from', 'work_dir', 'resume', 'default_scope', 'log_level', 'channels_last'])
SECTIONS = USED_SECTIONS.union(HELPER_SECTIONS.split())
RESEMBLANCE = 0.8


def load_config(path: PathLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply overrides, and refuse misspelled sections and lengths that cannot be trained.

    A variable, such as ``max_iters`` or ``data_root``, that the file sets although one of its bases does, and
    overrides of variables, come first: the file and its bases are evaluated with the new value in every
    assignment, so that what they compute from it follows. Overrides of sections, such as ``model`` or
    ``train_cfg``, are merged into the result.

    Args:
        path: a mmengine config file (``.py``, ``.json``, ``.yaml``), or the name of a config of the
            collection, see ``find_config``.
        overrides: dotted keys and their values, as in ``--cfg-options``.
    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        ConfigError: the file cannot be read, or cannot be what was meant; all problems are listed.
    """
    overrides = overrides or {}
    file = find_config(path)
    for key, value in overrides.items():
        check_override(key, value)
    source = parse_file(file)
    config = _read(file, source, {})
    before = {name: _plain(config[name]) for name in config}
    known = SECTIONS.union(before)
    problems = [_describe_section(name, SECTIONS) for name in before]
    problems += _apply(config, overrides, known)
    touched = dict.fromkeys(key.split('.', 1)[0] for key in overrides)
    variables = {
        name: _plain(config[name])
        for name in touched
        if name in before and _is_variable(name, before[name]) and _plain(config[name]) != before[name]
    }
    if variables and not any(problems):
        config = _read(file, source, variables)
        problems += [
            f'option {name!r}: the config computes it, change what it is computed from'
            for name, value in variables.items()
            if name not in USED_SECTIONS and file.suffix == '.py' and _plain(config[name]) != value
        ]
        problems += _apply(config, overrides, known)
    problems = [problem for problem in problems if problem] or check_config(config)
    if problems:
        raise ConfigError(f'config {path}: ' + '; '.join(problems))
    return config


def _read(path: Path, source: ConfigFile | None, overrides: Mapping[str, Any]) -> Config:
    """The config of a file; the values of overrides and of variables it redefines hold in its bases too."""
    values = dict(overrides)
    given = {name: as_expression(value) for name, value in overrides.items()}
    for file in source.chain() if source is not None else ():  # a child's values before its base's
        names = file.redefined() - (USED_SECTIONS - PLAIN_SECTIONS) - set(given)
        given.update((name, value) for name, value in file.constants().items() if name in names)
        computed = names - set(given)
        config = _evaluate(path, source, given, values) if computed else {}
        for name in sorted(computed & set(config)):
            value = _plain(config[name])
            if _is_variable(name, value) and is_literal(value):
                values[name], given[name] = value, as_expression(value)
    return _evaluate(path, source, given, values)


def _evaluate(
    path: Path, source: ConfigFile | None, variables: Mapping[str, Any], shown: Mapping[str, Any]
) -> Config:
    try:
        return evaluate(source, path, variables)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'config {path}: {error}') from None
    except Exception as error:
        given = ''.join(f' with {name}={value!r}' for name, value in shown.items())
        raise ConfigError(f'config {path} cannot be read{given}: {type(error).__name__}: {error}') from error


def _is_variable(name: str, value: Any) -> bool:
    """Whether other parts of a config may be computed from a name: all but the lists and dicts in use."""
    return name not in USED_SECTIONS or not isinstance(value, dict | list)


def _plain(value: Any) -> Any:
    """A value of a config as Python's own dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _describe_section(name: str, known: frozenset[str]) -> str:
    if name in known or name.startswith('_'):
        return ''
    hint = did_you_mean(name, known, RESEMBLANCE)
    return f'unknown section {name!r}{hint}' if hint else ''


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
            _merge(config, key, value)
        except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
            problems.append(f'option {key!r}={value!r} cannot be applied: {error}')
    return problems


def _merge(config: Config, key: str, value: Any) -> None:
    """Merge one override, also into an item of a list or tuple (``mean.0``)."""
    parent, _, last = key.rpartition('.')
    items = _look_up(config, parent) if last.isdecimal() else None
    if isinstance(items, list | tuple) and not isinstance(value, dict):
        if int(last) >= len(items):
            raise IndexError(f'{parent} has {len(items)} items')
        changed = [*items[: int(last)], value, *items[int(last) + 1 :]]
        key, value = parent, type(items)(changed)
    if isinstance(value, dict) and not isinstance(_look_up(config, key), dict | list | tuple | None):
        value = {'_delete_': True, **value}
    config.merge_from_dict({key: value})


def _look_up(config: Any, key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    found = config
    for part in key.split('.'):
        if isinstance(found, list | tuple) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping | Config):
            found = found.get(part)
        else:
            return None
    return found
