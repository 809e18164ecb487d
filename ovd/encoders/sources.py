"""Where a CLIP comes from: an architecture, and a file, folder, release or seed for its weights."""

import difflib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained, get_pretrained_cfg

from ..checkpoints.shards import INDEX_SUFFIX, is_index, shard_names
from ..files import named_model
from .foreign.safe_tokenizer import OWN_TOKENIZER, has_clip_tokens, read_json
from .foreign.transformers_clip import read_config

CONFIG_NAME = 'open_clip_config.json'
WEIGHTS_NAME = 'open_clip_model.safetensors'
_TRANSFORMERS_CONFIG = 'config.json'
_PREPROCESSOR = 'preprocessor_config.json'
_WEIGHTS_NAMES = (
    WEIGHTS_NAME,
    'open_clip_pytorch_model.safetensors',
    'model.safetensors',
    f'{WEIGHTS_NAME}{INDEX_SUFFIX}',
    f'model.safetensors{INDEX_SUFFIX}',
    f'open_clip_pytorch_model.bin{INDEX_SUFFIX}',
    f'pytorch_model.bin{INDEX_SUFFIX}',
)
_HUB_WEIGHTS = [WEIGHTS_NAME, 'open_clip_pytorch_model.bin']
_HUB_TRANSFORMERS_WEIGHTS = ['model.safetensors', f'model.safetensors{INDEX_SUFFIX}', 'pytorch_model.bin']
_SHARD = re.compile(r'-\d{5}-of-\d{5}\.')
_WEIGHTS_SUFFIXES = ('.safetensors', '.pt', '.pth', '.bin')
_ASSETS = Path(__file__).resolve().parents[1] / 'assets'
BUILT_IN = ('clip_tiny_shapes', 'bert_tiny_shapes')


@dataclass
class ClipSource:
    """An architecture and where its weights come from: a file, or a seed.

    Attributes:
        folder: with the configuration and, it may be, a tokenizer.
        is_remote: the user named something that may be fetched.
    """

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    weights: Path | None = None
    seed: int | None = None
    is_remote: bool = False


def resolve_built_in(name: str | os.PathLike[str]) -> str:
    """The folder of a built-in encoder, or of a model under ``$OVD_HOME``, given by name; other names and
    existing paths stay as they are."""
    name = os.fspath(name)
    if os.path.exists(name):
        return name
    if name in BUILT_IN:
        return str(_ASSETS / name)
    return str(named_model(name) or name)


def looked_up_from(path: str | os.PathLike[str]) -> str:
    """For messages about a path that does not exist: where a relative one was looked up."""
    return '' if os.path.isabs(path) else f' (looked up from {Path.cwd()})'


def find_source(model: str, pretrained: str | None) -> ClipSource:
    """What ``load_clip``'s arguments mean; fetches only what they name as remote."""
    model = resolve_built_in(model)
    if model.startswith('hf-hub:'):
        source = _hub_source(model, with_weights=pretrained is None)
    elif Path(model).is_dir():
        folder = Path(model)
        source = ClipSource(model, *_read_folder(folder), folder=folder)
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
        source.weights = _whole(Path(pretrained))
    elif pretrained.endswith(_WEIGHTS_SUFFIXES) or '/' in pretrained or os.sep in pretrained:
        raise FileNotFoundError(
            f'weights file {pretrained} of CLIP {model!r} does not exist{looked_up_from(pretrained)}'
        )
    else:
        _find_release(source, pretrained)
    return source


def _hub_source(model: str, with_weights: bool) -> ClipSource:
    """A repository of the hub, in the layout of open_clip or of transformers."""
    repository = model.removeprefix('hf-hub:')
    config = _download(model, lambda: _from_hub(repository, [CONFIG_NAME, _TRANSFORMERS_CONFIG]))
    names = _HUB_WEIGHTS
    if config.name == _TRANSFORMERS_CONFIG:
        names = _HUB_TRANSFORMERS_WEIGHTS
        with suppress(FileNotFoundError):  # then the usual pixel statistics
            _download(model, lambda: _from_hub(repository, [_PREPROCESSOR]))
    source = ClipSource(model, *_read_folder(config.parent), folder=config.parent, is_remote=True)
    if with_weights:
        source.weights = _download(model, lambda: _from_hub(repository, names))
        for shard in shard_names(source.weights) if is_index(source.weights) else ():
            _download(model, lambda shard=shard: _from_hub(repository, [shard]))  # type: ignore[misc]
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
    source.is_remote = True
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
    if found and all(_SHARD.search(path.name) for path in found):
        raise FileNotFoundError(
            f'{folder} holds {len(found)} shards ({found[0].name}, ...) and no index of them, a file named '
            f'{_WEIGHTS_NAMES[4]}'
        )
    if len(found) != 1:
        raise FileNotFoundError(
            f'{folder} holds {len(found)} weights files ({", ".join(path.name for path in found)}); expected '
            f'{WEIGHTS_NAME}, or name the file as pretrained='
        )
    return found[0]


def _whole(path: Path) -> Path:
    """The file itself, unless it is one shard of many."""
    if _SHARD.search(path.name):
        raise ValueError(
            f'{path} is one of several shards; name its folder, or the index *{INDEX_SUFFIX} beside it'
        )
    return path


def _architecture(name: str) -> dict[str, Any]:
    known = open_clip.list_models()
    config = open_clip.get_model_config(name.replace('/', '-')) if name.replace('/', '-') in known else None
    if config is None:
        close = difflib.get_close_matches(name, [*known, *BUILT_IN], n=3)
        raise ValueError(
            f'{name!r} is neither an architecture of open_clip nor an existing folder or JSON file'
            f'{looked_up_from(name) if "/" in name or os.sep in name else ""}'
            + (f'; did you mean {", ".join(close)}?' if close else '')
        )
    return dict(config)


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing of a folder in the layout of open_clip, or of transformers."""
    config, preprocessor = folder / _TRANSFORMERS_CONFIG, folder / _PREPROCESSOR
    if (folder / CONFIG_NAME).is_file() or not config.is_file():
        return _read_config(folder / CONFIG_NAME)
    content = read_json(config)
    model_cfg, preprocess_cfg = read_config(
        content, read_json(preprocessor) if preprocessor.is_file() else {}, str(config)
    )
    text_cfg = model_cfg['text_cfg']
    if not has_clip_tokens(folder, text_cfg['vocab_size']):
        text_cfg['hf_tokenizer_name'] = OWN_TOKENIZER
    return model_cfg, preprocess_cfg


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f'CLIP configuration {path} does not exist{looked_up_from(path)}')
    return split_config(read_json(path), str(path))


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
