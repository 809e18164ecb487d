"""mmengine reads and writes checkpoints through ovd.checkpoints, and never unpickles."""

import io
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import nn

from ovd.checkpoints.loading import load_tensors
from ovd.checkpoints.reading import UnsafeCheckpointError
from ovd.checkpoints.writing import save_checkpoint
from ovd.hosts.mmengine_checkpoints import patch_mmengine
from tests.toys.checkpoints import BOOBY_TRAPS, was_run

PATCHED = [
    '_load_checkpoint_with_prefix',
    '_safe_torch_load',
    'load_checkpoint',
    'load_state_dict',
    'load_url',
    'print_log',
    'save_checkpoint',
]


@pytest.mark.parametrize('name', PATCHED)
def test_each_function_of_mmengine_is_replaced(name: str) -> None:
    assert getattr(mmengine_checkpoint, name).__module__.startswith('ovd.')


def test_no_other_function_of_mmengine_is_replaced() -> None:
    ours = [name for name, value in vars(mmengine_checkpoint).items() if _is_ours(value)]
    assert sorted(ours) == sorted(PATCHED)


def _is_ours(value: Any) -> bool:
    return callable(value) and str(getattr(value, '__module__', '')).startswith('ovd.')


@pytest.mark.parametrize('name', [*PATCHED, '_load_checkpoint'])
def test_an_mmengine_without_one_of_the_functions_is_refused(name: str) -> None:
    """A renamed function would otherwise go on unpickling."""
    module = ModuleType('mmengine.runner.checkpoint')
    originals = {other: print for other in [*PATCHED, '_load_checkpoint'] if other != name}
    module.__dict__.update(originals)
    with pytest.raises(ImportError, match=rf'\d+\.\d+\S*.*{name}'):
        patch_mmengine(module)
    assert {other: getattr(module, other) for other in originals} == originals
    assert not hasattr(module, name)


@pytest.mark.parametrize('name', sorted(BOOBY_TRAPS))
def test_mmengine_refuses_booby_traps_too(tmp_path: Path, name: str) -> None:
    path = BOOBY_TRAPS[name](tmp_path)
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(nn.Linear(1, 1), str(path))
    with pytest.raises(UnsafeCheckpointError):
        mmengine_checkpoint._load_checkpoint_with_prefix('backbone', str(path))
    with pytest.raises(UnsafeCheckpointError), path.open('rb') as file:
        mmengine_checkpoint._safe_torch_load(io.BytesIO(file.read()), weights_only=False)
    assert not was_run(tmp_path)


def test_a_downloaded_booby_trap_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    BOOBY_TRAPS['zip'](tmp_path).rename(tmp_path / 'checkpoints' / 'net-1234.pth')
    with pytest.raises(UnsafeCheckpointError, match=r'net-1234\.pth: refused'):
        load_checkpoint(nn.Linear(1, 1), 'https://example.org/net-1234.pth')
    assert not was_run(tmp_path)


def test_patching_twice_changes_nothing() -> None:
    patch_mmengine(mmengine_checkpoint)
    import mmengine.runner.runner as runner_module

    assert mmengine_checkpoint.save_checkpoint is save_checkpoint
    assert runner_module.save_checkpoint is save_checkpoint


class Backbone(BaseModule):
    """Two layers of mmengine's kind, which an ``init_cfg`` fills."""

    def __init__(self, **init_cfg: Any) -> None:
        super().__init__({'type': 'Pretrained', **init_cfg})
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_pretrained_weights_that_fit_in_part_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(
        'ovd.hosts.mmengine_checkpoints.current_logger', lambda: SimpleNamespace(warning=warned.append)
    )
    path = tmp_path / 'w.pth'
    tensors = {'first.weight': torch.ones(2, 2), 'first.bias': torch.ones(2), 'fc.weight': torch.ones(9)}
    torch.save({'state_dict': {f'module.{key}': value for key, value in tensors.items()}}, path)
    backbone = Backbone(checkpoint=str(path))
    backbone.init_weights()
    assert backbone.first.weight.eq(1).all()
    assert len(warned) == 1
    assert warned[0].startswith(f'Loaded {path} into Backbone in part: 2 tensors match; 2 missing: second.')
    assert warned[0].endswith('1 unexpected: fc.weight')

    torch.save(
        {f'backbone.{key}': value for key, value in Backbone(checkpoint='').state_dict().items()}, path
    )
    backbone = Backbone(checkpoint=str(path), prefix='backbone')
    backbone.init_weights()
    assert torch.equal(backbone.first.weight, load_tensors(path)['backbone.first.weight'])
    assert len(warned) == 1


def test_pretrained_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """mmengine would go on with random weights."""
    path = tmp_path / 'w.pth'
    torch.save({'decoder.weight': torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r'w\.pth.*1'):
        Backbone(checkpoint=str(path)).init_weights()
    with pytest.raises(ValueError, match=r"w\.pth.*1.*'backbone\.'"):
        Backbone(checkpoint=str(path), prefix='backbone.').init_weights()
    with pytest.raises(ValueError):
        Backbone(checkpoint=str(path), prefix='decoder').init_weights()


class Versioned(nn.Linear):
    """Doubles weights of its first version, as hosts convert old files."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get('version', 1) < 2:
            state[f'{prefix}weight'] = 2 * state[f'{prefix}weight']
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_of_a_file_reach_the_modules(tmp_path: Path) -> None:
    model = nn.Sequential(Versioned(1, 1))
    torch.save(model.state_dict(), tmp_path / 'new.pth')
    torch.save(dict(model.state_dict()), tmp_path / 'old.pth')
    weight = model[0].weight.detach().clone()
    load_checkpoint(model, str(tmp_path / 'new.pth'))
    assert torch.equal(model[0].weight, weight)
    load_checkpoint(model, str(tmp_path / 'old.pth'))
    assert torch.equal(model[0].weight, 2 * weight)
