"""Where a CLIP comes from: an architecture, and a file, folder, release or seed for its weights."""

import difflib
import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained, get_pretrained_cfg

CONFIG_NAME = 'open_clip_config.json'
WEIGHTS_NAME = 'open_clip_model.safetensors'
_WEIGHTS_NAMES = (WEIGHTS_NAME, 'open_clip_pytorch_model.safetensors', 'model.safetensors')
_HUB_WEIGHTS = [WEIGHTS_NAME, 'open_clip_pytorch_model.bin']
_WEIGHTS_SUFFIXES = ('.safetensors', '.pt', '.pth', '.bin')


@dataclass
class ClipSource:
    """An architecture and where its weights come from: a file, or a seed."""

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    weights: Path | None = None
    seed: int | None = None


def find_source(model: str, pretrained: str | None) -> ClipSource:
    """What ``load_clip``'s arguments mean; fetches only what they name as remote."""
    if model.startswith('hf-hub:'):
        repository = model.removeprefix('hf-hub:')
        config = _download(model, lambda: _from_hub(repository, [CONFIG_NAME]))
        source = ClipSource(model, *_read_config(config), folder=config.parent)
        if pretrained is None:
            source.weights = _download(model, lambda: _from_hub(repository, _HUB_WEIGHTS))
    elif Path(model).is_dir():
        folder = Path(model)
        source = ClipSource(model, *_read_config(folder / CONFIG_NAME), folder=folder)
        if pretrained is None:
            source.weights = _weights_in(folder)
    elif model.endswith('.json'):
        source = ClipSource(model, *_read_config(Path(model)))
    else:
        source = ClipSource(model, _architecture(model))

    if pretrained is None:
        if source.weights is None:
            raise ValueError(
                f'no weights are named for CLIP {model!r}; give pretrained= a file, a release tag, '
                "or 'random:SEED'"
            )
    elif pretrained.startswith('random:'):
        source.seed = _seed(pretrained)
    elif Path(pretrained).is_file():
        source.weights = Path(pretrained)
    elif pretrained.endswith(_WEIGHTS_SUFFIXES) or '/' in pretrained or os.sep in pretrained:
        raise FileNotFoundError(f'weights file {pretrained} of CLIP {model!r} does not exist')
    else:
        _find_release(source, pretrained)
    return source


def _find_release(source: ClipSource, tag: str) -> None:
    """Fill in weights and settings of a release of open_clip, downloaded unless it is in the cache."""
    name = source.name.replace('/', '-')
    release = get_pretrained_cfg(name, tag)
    if not release:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(
            f'{tag!r} is neither a weights file nor a release of CLIP {source.name!r}; '
            f'known releases: {", ".join(tags) or "none"}'
        )
    source.preprocess_cfg = {key: release[key] for key in ('mean', 'std') if key in release}
    if release.get('quick_gelu'):
        source.model_cfg['quick_gelu'] = True
    repository, _, file_name = release.get('hf_hub', '').rpartition('/')
    names = [f'{file_name.rpartition(".")[0]}.safetensors', file_name] if file_name else _HUB_WEIGHTS

    def fetch() -> str:
        return _from_hub(repository, names) if repository else download_pretrained(release)

    source.weights = _download(f'{source.name}, {tag}', fetch)


def _download(what: str, fetch: Callable[[], str]) -> Path:
    try:
        return Path(fetch())
    except Exception as error:  # the hub's client has no common base class for being offline
        raise FileNotFoundError(
            f'the CLIP release {what!r} is not in the local cache and cannot be downloaded '
            f'({first_line(error)}); fetch it on a connected machine and name the local file or folder'
        ) from None


def _from_hub(repository: str, names: list[str]) -> str:
    """Path of the first of the named files, taken from the cache without asking the hub where it is there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            return hf_hub_download(repository, name, local_files_only=True)
        except LocalEntryNotFoundError:
            continue
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=10)  # one try; a download has many
        except EntryNotFoundError:
            continue
        return hf_hub_download(repository, name)
    raise FileNotFoundError(f'{repository} holds none of {", ".join(names)}')


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS_SUFFIXES)
    if len(found) != 1:
        raise FileNotFoundError(
            f'{folder} holds {len(found)} weights files ({", ".join(path.name for path in found)}); expected '
            f'{WEIGHTS_NAME}, or name the file as pretrained='
        )
    return found[0]


def _architecture(name: str) -> dict[str, Any]:
    known = open_clip.list_models()
    config = open_clip.get_model_config(name.replace('/', '-')) if name.replace('/', '-') in known else None
    if config is None:
        close = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f'{name!r} is neither an architecture of open_clip nor an existing folder or JSON file'
            + (f'; did you mean {", ".join(close)}?' if close else '')
        )
    return dict(config)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f'CLIP configuration {path} does not exist')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'CLIP configuration {path} is no valid JSON: {error}') from None
    return split_config(content, str(path))


def split_config(content: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing of a configuration, which may be the bare architecture."""
    model_cfg = content.get('model_cfg', content) if isinstance(content, dict) else {}
    missing = [key for key in ('embed_dim', 'vision_cfg', 'text_cfg') if key not in model_cfg]
    if missing:
        raise ValueError(f'{name} is no CLIP architecture: it lacks {", ".join(missing)}')
    return deepcopy(model_cfg), dict(content.get('preprocess_cfg') or {})


def _seed(pretrained: str) -> int:
    text = pretrained.removeprefix('random:')
    if not text.isdecimal():
        raise ValueError(f"random weights are named 'random:SEED' with a whole number, got {pretrained!r}")
    return int(text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
