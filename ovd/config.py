"""Reading an experiment's config, and refusing it early when it cannot be what the user meant.

Reading order: load_config, its helpers, check_needs.
"""

import ast
import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine.config.config as reader
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
    num_classes img_scales batch_size max_epochs max_iters norm_cfg optimizer class_names vocabulary
"""
OUR_SECTIONS = 'region_cache pseudo_labels needs'
USED_SECTIONS = frozenset(f'{RUNNER_SECTIONS} {OUR_SECTIONS}'.split())
SECTIONS = USED_SECTIONS.union(HELPER_SECTIONS.split())
RESEMBLANCE = 0.8


class ConfigError(ValueError):
    """Everything wrong with a config, in one message."""


def load_config(path: PathLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply overrides, and refuse misspelled sections.

    Overrides of variables, such as ``max_iters`` or ``data_root``, come first: the file and its bases are
    evaluated with the new value in every assignment, so that what they compute from it follows. Overrides of
    sections, such as ``model`` or ``train_cfg``, are merged into the result.

    Args:
        path: a mmengine config file (``.py``, ``.json``, ``.yaml``).
        overrides: dotted keys and their values, as in ``--cfg-options``.
    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        ConfigError: the file cannot be read, or top-level names resemble known sections without being one;
            all such names are listed.
    """
    overrides = overrides or {}
    config = _read(path, {})
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
        config = _read(path, variables)
        problems += [
            f'option {name!r}: the config computes it, change what it is computed from'
            for name, value in variables.items()
            if name not in USED_SECTIONS and Path(path).suffix == '.py' and _plain(config[name]) != value
        ]
        problems += _apply(config, overrides, known)
    problems = [problem for problem in problems if problem]
    if problems:
        raise ConfigError(f'config {path}: ' + '; '.join(problems))
    return config


def _read(path: PathLike, variables: Mapping[str, Any]) -> Config:
    """The config of a file whose variables have these values, in its bases too."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'config {path} does not exist')
    try:
        with _assigning(variables):
            return Config.fromfile(os.fspath(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f'config {path}: {error}') from None
    except Exception as error:
        given = ''.join(f' with {name}={value!r}' for name, value in variables.items())
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


@contextmanager
def _assigning(variables: Mapping[str, Any]) -> Iterator[None]:
    """While a config is read, put these values in place of those that it assigns."""
    original = reader.RemoveAssignFromAST
    literals = {name: ast.parse(repr(value), mode='eval').body for name, value in variables.items()}

    class Reassign(original):  # type: ignore[misc, valid-type]
        """The step in which mmengine removes ``_base_`` from the code of each file."""

        def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
            kept = super().visit_Assign(node)
            return kept and self._reassigned(node, node.targets)

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            return self._reassigned(node, [node.target])

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return node

        def _reassigned(self, node: ast.Assign | ast.AnnAssign, targets: list[ast.expr]) -> ast.AST:
            for target in targets:
                if isinstance(target, ast.Name) and target.id in literals:
                    node.value = literals[target.id]
            return ast.fix_missing_locations(node)

    reader.RemoveAssignFromAST = Reassign
    try:
        yield
    finally:
        reader.RemoveAssignFromAST = original


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
    A path of None, from a variable that was switched off (``load_from=None``), needs nothing.

    Raises:
        FileNotFoundError: lists every missing path with its instruction.
    """
    missing = []
    for index, need in enumerate(config.get('needs') or ()):
        unknown = set(need) - {'path', 'what', 'how'}
        if unknown or 'path' not in need:
            raise ConfigError(f'needs[{index}] takes path, what and how, got {sorted(need)}')
        if need['path'] is not None and not Path(need['path']).exists():
            what = f' ({need["what"]})' if need.get('what') else ''
            how = f': {need["how"]}' if need.get('how') else ''
            missing.append(f'{need["path"]}{what}{how}')
    if missing:
        plural = 'files are' if len(missing) > 1 else 'file is'
        raise FileNotFoundError(f'{len(missing)} needed {plural} missing: ' + '; '.join(missing))
