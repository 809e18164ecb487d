"""Checkpoint files that run code when they are unpickled: these create a file named ``payload_ran``."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Unpickling it writes ``payload_ran`` into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return exec, (f'open({str(self.folder / "payload_ran")!r}, "w").close()',)


def was_run(folder: Path) -> bool:
    """Whether the payload ran."""
    return (folder / 'payload_ran').exists()


def _state(folder: Path) -> dict[str, Any]:
    return {
        'meta': {'iter': 1, 'epoch': 0},
        'state_dict': {'weight': torch.ones(1, 1)},
        'note': Payload(folder),
    }


def _zip(folder: Path) -> Path:
    torch.save(_state(folder), folder / 'zip.pth')
    return folder / 'zip.pth'


def _legacy(folder: Path) -> Path:
    torch.save(_state(folder), folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    return folder / 'legacy.pth'


def _plain_pickle(folder: Path) -> Path:
    (folder / 'plain.pth').write_bytes(pickle.dumps(_state(folder)))
    return folder / 'plain.pth'


def _old_pickle(folder: Path) -> Path:
    (folder / 'old.pth').write_bytes(pickle.dumps(Payload(folder), protocol=0))
    return folder / 'old.pth'


def _whole_module(folder: Path) -> Path:
    module = torch.nn.Linear(1, 1)
    module.note = Payload(folder)  # type: ignore[assignment]
    torch.save(module, folder / 'module.pth')
    return folder / 'module.pth'


def _torchscript(folder: Path) -> Path:
    with zipfile.ZipFile(folder / 'script.pth', 'w') as archive:
        archive.writestr('script/constants.pkl', pickle.dumps(()))
        archive.writestr('script/data.pkl', pickle.dumps(_state(folder), protocol=2))
    return folder / 'script.pth'


BOOBY_TRAPS: dict[str, Callable[[Path], Path]] = {
    'zip': _zip,
    'legacy': _legacy,
    'plain_pickle': _plain_pickle,
    'old_pickle': _old_pickle,
    'whole_module': _whole_module,
    'torchscript': _torchscript,
}
