"""Load named tensors from a file, and into a model."""

import logging
import os
from collections.abc import Iterable, Mapping

import safetensors
import torch
from torch import Tensor, nn

from ..files import require_file
from .comparing import LoadReport, compare, dry_run_load
from .reading import PathLike, read_checkpoint
from .shards import is_index, load_shards

_WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'module')


def load_tensors(path: PathLike, device: str | torch.device = 'cpu') -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint.

    Args:
        path: safetensors file, or PyTorch file (read weights-only). If the tensors are nested under
            ``state_dict``, ``model``, ``model_state_dict`` or ``module``, that entry is used. Or the index of
            sharded weights (``*.index.json``).
        device: device of the returned tensors.
    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the file contains objects other than tensors and plain values.
        ValueError: not a checkpoint, truncated, or without tensors.
    """
    found = load_shards(path, device) if is_index(path) else read_checkpoint(path, map_location=device)
    trail = ''
    while isinstance(found, dict):
        inner = next((key for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None or any(isinstance(value, Tensor) for value in found.values()):
            break
        found, trail = found[inner], f'{trail}[{inner!r}]'
    where = f'{path}{trail}'
    if not isinstance(found, dict) or not found:
        raise ValueError(f'{where}: expected named tensors, found {found!r:.40}')
    tensors = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f'{where}: expected named tensors, found {type(value).__name__} under {key!r}')
        tensors[key] = value.detach()
    return tensors


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    strict: bool = True,
    source: PathLike = 'the checkpoint',
) -> LoadReport:
    """Copy ``tensors`` into ``module`` and report what did not fit.

    Args:
        allow_missing, allow_unexpected: key patterns (``fnmatch``) that are allowed to differ.
        strict: raise unless every tensor fits; otherwise copy those that fit.
        source: name of the checkpoint in messages.
    Raises:
        ValueError: ``strict`` and something does not fit, or nothing fits at all. The model is unchanged.
    """
    tensors = _without_wrapper_prefix(tensors)
    report, fitting = dry_run_load(module, tensors, allow_missing, allow_unexpected)
    if report.num_matched == 0 and tensors:
        raise ValueError(
            f'{source} belongs to another model: none of its {len(tensors)} tensors fits '
            f'{type(module).__name__} ({report})'
        )
    if strict and not report.is_complete:
        raise ValueError(f'{source} does not fit {type(module).__name__}: {report}')
    module.load_state_dict(fitting, strict=False)
    return report


def _without_wrapper_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Strip the ``module.`` prefix of a checkpoint saved from a data-parallel wrapper."""
    if all(key.startswith('module.') for key in tensors):
        return {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
    return tensors


def load_for_inference(
    module: nn.Module, tensors: Mapping[str, Tensor], source: PathLike = 'the checkpoint'
) -> LoadReport:
    """Load weights for inference: missing tensors are an error, unexpected ones a warning.

    Raises:
        ValueError: a tensor is missing, has another shape or is not finite. The model is unchanged.
    """
    bad = find_not_finite(tensors)
    if bad is not None:
        raise ValueError(f'{source}: {bad} is not finite; these weights answer nothing')
    report = compare(module, _without_wrapper_prefix(tensors))
    if report.missing or report.mismatched:
        raise ValueError(f'{source} is not a checkpoint of this {type(module).__name__}: {report}')
    load_into(module, tensors, strict=False, source=source)
    if report.unexpected:
        current_logger().warning(f'Loaded {source} in part: {report}')
    return report


def find_not_finite(tensors: Mapping[str, object]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, None where all are finite."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def load_metadata(path: PathLike) -> dict[str, str]:
    """Read the metadata of a safetensors file; ``{}`` if it has none."""
    require_file(path, 'checkpoint')
    try:
        with safetensors.safe_open(os.fspath(path), framework='pt') as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path}: damaged or not a safetensors file ({error})') from None


def current_logger() -> logging.Logger:
    """mmengine's logger of the current experiment."""
    from mmengine.logging import MMLogger

    return MMLogger.get_current_instance()
