"""Compare the tensors of a checkpoint with a model, without changing the model."""

import fnmatch
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_MAX_LISTED_KEYS = 6


@dataclass(frozen=True)
class LoadReport:
    """How the tensors of a checkpoint fit a model.

    ``mismatched`` holds (key, shape in the checkpoint, shape in the model).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    num_matched: int

    @property
    def is_complete(self) -> bool:
        """No tensor is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f'{self.num_matched} tensors match']
        for title, keys in (('missing', self.missing), ('unexpected', self.unexpected)):
            if keys:
                parts.append(f'{len(keys)} {title}: {shorten(keys)}')
        if self.mismatched:
            shapes = [f'{key} {found} instead of {wanted}' for key, found, wanted in self.mismatched]
            parts.append(f'{len(shapes)} of another shape: {shorten(shapes)}')
        return '; '.join(parts)

    def listing(self) -> str:
        """Every key that does not fit, one per line."""
        lines = [f'missing: {key}' for key in self.missing]
        lines += [f'unexpected: {key}' for key in self.unexpected]
        lines += [f'{found} instead of {wanted}: {key}' for key, found, wanted in self.mismatched]
        return '\n'.join(lines)


def shorten(items: Iterable[str]) -> str:
    """The first few items, comma-separated, and the number of the rest."""
    listed = list(items)
    rest = len(listed) - _MAX_LISTED_KEYS
    return ', '.join(listed[:_MAX_LISTED_KEYS]) + (f' and {rest} more' if rest > 0 else '')


def compare(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Report how ``tensors`` fit ``module``.

    Load hooks and ``_load_from_state_dict`` overrides are applied first, so renamed keys count as matching.

    Args:
        allow_missing, allow_unexpected: key patterns (``fnmatch``) left out of the report.
    """
    return dry_run_load(module, tensors, allow_missing, allow_unexpected)[0]


def dry_run_load(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Run ``load_state_dict`` without writing weights; return the report and the tensors that fit.

    Visits the modules in the order of ``load_state_dict`` and calls their ``_load_from_state_dict``, because
    mmdet and mmseg rename keys of older checkpoints there.
    """
    metadata = getattr(tensors, '_metadata', None) or {}  # version of each module that wrote the file
    expected = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []

    def load(part: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
        part._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, [], unexpected, [])
        direct = (key for key in state if key.startswith(prefix) and '.' not in key[len(prefix) :])
        found.update((key, state[key]) for key in direct if key in expected)
        for name, child in part._modules.items():
            inner = f'{prefix}{name}.'
            below = {key: tensor for key, tensor in state.items() if key.startswith(inner)}
            if child is None:
                unexpected.extend(below)
            else:
                load(child, below, inner)

    with _NoCopies():
        load(module, dict(tensors), '')
    given = {id(tensor) for tensor in tensors.values()}
    mismatched = {
        key: tensor
        for key, tensor in found.items()
        if tensor.shape != expected[key].shape and (tensor.shape, expected[key].dim()) != ((1,), 0)
    }
    # Batch norms add a counter that old files lack: it is neither matched nor missing.
    matched = [key for key in found.keys() - mismatched if key in tensors or id(found[key]) in given]
    allow_missing = [*allow_missing, '*num_batches_tracked']
    report = LoadReport(
        missing=tuple(_not_allowed((key for key in expected if key not in found), allow_missing)),
        unexpected=tuple(_not_allowed(unexpected, allow_unexpected)),
        mismatched=tuple(
            (key, tuple(mismatched[key].shape), tuple(expected[key].shape))
            for key in expected
            if key in mismatched
        ),
        num_matched=len(matched),
    )
    refused = {id(tensor) for tensor in mismatched.values()}
    fitting = OrderedDict((key, tensor) for key, tensor in tensors.items() if id(tensor) not in refused)
    fitting._metadata = metadata  # type: ignore[attr-defined]
    return report, fitting


class _NoCopies(TorchFunctionMode):
    """Make ``Tensor.copy_`` a no-op, so that loading changes no weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.copy_ else func(*args, **(kwargs or {}))


def _not_allowed(keys: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns)
    return [key for key in keys if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)]
