"""Route mmengine's checkpoint loading and saving through ``ovd.checkpoints``, which never unpickles."""

import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from ..checkpoints.loading import current_logger, load_into
from ..checkpoints.reading import PathLike, read_checkpoint
from ..checkpoints.writing import save_checkpoint


def patch_mmengine(module: ModuleType) -> None:
    """Replace the functions of ``mmengine.runner.checkpoint`` that read or write files; idempotent.

    mmengine reads weights-only first, but falls back to full unpickling. Everything that loads (``init_cfg``,
    ``load_from``, resume, the inferencers) ends in the functions replaced here. mmengine also continues with
    random weights if no tensor of a file fits; with these functions that is an error, and a partial match is
    logged in one line.

    Raises:
        ImportError: the installed mmengine has no function of that name, so that replacing it would have no
            effect and files could be unpickled. Nothing is replaced.
    """
    replacements: dict[str, Callable[..., Any]] = {
        '_safe_torch_load': _safe_torch_load,
        '_load_checkpoint_with_prefix': _load_with_prefix,
        'load_checkpoint': _load_checkpoint,
        'load_state_dict': _load_state_dict,
        'load_url': _load_url,
        'save_checkpoint': save_checkpoint,
        'print_log': _print_log,
    }
    called = ('_load_checkpoint',)  # by the functions below; mmengine's, which ends in _safe_torch_load
    absent = [name for name in (*replacements, *called) if not callable(getattr(module, name, None))]
    if absent:
        raise ImportError(
            f'{module.__name__} of onedl-mmengine {_mmengine_version()} has no function '
            f'{", ".join(absent)}: checkpoints could be unpickled; install a version that ovd supports '
            '(see pyproject.toml)'
        )
    original_save = module.save_checkpoint
    for name, replacement in replacements.items():
        setattr(module, name, replacement)
    # Modules that were imported before hold the original under their own name.
    for name, other in list(sys.modules.items()):
        if name.startswith('mmengine.') and getattr(other, 'save_checkpoint', None) is original_save:
            other.save_checkpoint = save_checkpoint  # type: ignore[attr-defined]


def _mmengine_version() -> str:
    try:
        return version('onedl-mmengine')
    except PackageNotFoundError:
        return '(unknown version)'


def _safe_torch_load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    return read_checkpoint(file, map_location)


def _mmengine_load(filename: str, map_location: Any = None, logger: Any = None) -> Any:
    """The content of a path or URL: mmengine resolves it, and reads it with the functions above."""
    from mmengine.runner import checkpoint

    return checkpoint._load_checkpoint(filename, map_location, logger)


def _load_with_prefix(prefix: str, filename: str, map_location: Any = None) -> dict[str, Tensor]:
    start = f'{prefix.removesuffix(".")}.'
    tensors = _state_dict(_mmengine_load(filename, map_location))
    found = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    if not found:
        raise ValueError(f'{filename}: none of its {len(tensors)} tensors begins with {start!r}')
    return found


def _load_checkpoint(
    model: nn.Module,
    filename: str,
    map_location: Any = None,
    strict: bool = False,
    logger: Any = None,
    revise_keys: Iterable[tuple[str, str]] = ((r'^module\.', ''),),
) -> Any:
    content = _mmengine_load(filename, map_location, logger)
    tensors = _state_dict(content)
    renamed = OrderedDict(tensors)
    for pattern, replacement in revise_keys:
        renamed = OrderedDict((re.sub(pattern, replacement, key), value) for key, value in renamed.items())
    renamed._metadata = getattr(tensors, '_metadata', None)  # type: ignore[attr-defined]
    _load_state_dict(model, renamed, strict, logger, filename)
    return content


def _state_dict(content: Any) -> Any:
    return content.get('state_dict', content)


def _load_state_dict(
    model: Any,
    state_dict: Mapping[str, Tensor],
    strict: bool = False,
    logger: Any = None,
    source: PathLike = 'the checkpoint',
) -> None:
    from mmengine.model import is_model_wrapper

    target = model.module if is_model_wrapper(model) else model
    report = load_into(target, state_dict, strict=strict, source=source)
    if not report.is_complete:
        current_logger().warning(f'Loaded {source} into {type(target).__name__} in part: {report}')


def _load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Download once into torch's cache, then read like a local file."""
    folder = Path(model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    target = folder / os.path.basename(urlparse(url).path)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), progress=progress)
    return read_checkpoint(target, map_location)


def _print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
    """Send messages without a logger to the current one, at level DEBUG unless they are warnings."""
    from mmengine.logging import print_log

    if logger is None:
        logger, level = 'current', level if level >= logging.WARNING else logging.DEBUG
    print_log(msg, logger=logger, level=level)
