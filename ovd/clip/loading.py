"""CLIP models: open_clip's architectures with weights from a local file, a local folder or a named release.

Nothing is downloaded unless the caller names a release tag or an ``hf-hub:`` repository; every such name can
be replaced by a local path. Reading order: load_clip (shared, frozen), build_clip (fresh), save_clip.
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.convert import convert_state_dict
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor, nn

from ..checkpoint import load_into, load_tensors, save_tensors
from ..files import sha256_json, sha256_tensors, write_json

PathLike = str | os.PathLike[str]

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}

_CONFIG_NAME = 'open_clip_config.json'
_WEIGHTS_NAME = 'open_clip_model.safetensors'
_WEIGHTS_NAMES = (_WEIGHTS_NAME, 'open_clip_pytorch_model.safetensors', 'model.safetensors')
_HUB_WEIGHTS = [_WEIGHTS_NAME, 'open_clip_pytorch_model.bin']
_WEIGHTS_SUFFIXES = ('.safetensors', '.pt', '.pth', '.bin')
# Scalars that OpenAI's own files hold beside the weights; such weights were trained with QuickGELU.
_OPENAI_MARKERS = ('input_resolution', 'context_length', 'vocab_size')


@dataclass(eq=False)
class LoadedClip:
    """A CLIP model and what is needed to feed it.

    Attributes:
        model: open_clip module with ``visual`` and a text tower.
        config: {'model_cfg': architecture, 'preprocess_cfg': pixel statistics}, as open_clip writes it.
        image_size: side of the square input, pixels.
        mean, std: of RGB values in [0, 1].
        embed_dim: width D of the joint space.
        context_length: longest text in tokens, start and end included.
        fingerprint: 16 hexadecimal digits that change with the weights and the architecture.
    """

    model: nn.Module
    config: dict[str, Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embed_dim: int
    context_length: int
    fingerprint: str
    folder: Path | None = field(default=None, repr=False)

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts -> token_ids [T, context_length]; made on first use, since image towers need none."""
        text_cfg = self.config['model_cfg']['text_cfg']
        options = dict(text_cfg.get('tokenizer_kwargs') or {}, context_length=self.context_length)
        source = text_cfg.get('hf_tokenizer_name')
        if not source:
            return SimpleTokenizer(**options)
        if self.folder and any(self.folder.glob('tokenizer*')):
            source = str(self.folder)
        try:
            return HFTokenizer(source, tokenizer_mode=text_cfg.get('tokenizer_mode'), **options)
        except ImportError:
            raise ImportError(
                f'the tokenizer {source!r} needs the package transformers: pip install transformers'
            ) from None
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f'cannot load the tokenizer {source!r}: {_first_line(error)}') from None


def load_clip(model: PathLike, pretrained: PathLike | None = None, dtype: str = 'float32') -> LoadedClip:
    """Load a CLIP to look things up with: frozen, in eval mode, shared by all callers that ask for the same.

    Args:
        model: an architecture of open_clip ('ViT-B-32-quickgelu'), a JSON file of one, a local folder with
            ``open_clip_config.json`` and weights, or 'hf-hub:owner/name'.
        pretrained: a local weights file (.safetensors, or a PyTorch state dict, which is read weights-only),
            a release tag of open_clip ('openai'), or 'random:SEED' for random weights; a folder needs none.
        dtype: 'float32', 'float16' or 'bfloat16'; the fingerprint is that of the float32 weights.
    Raises:
        ValueError: unknown architecture or tag, no weights named, weights of another model.
        FileNotFoundError: a path that does not exist, or a named release that cannot be had offline.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype {dtype!r} of a CLIP model is none of {list(DTYPES)}')
    model, pretrained = os.fspath(model), None if pretrained is None else os.fspath(pretrained)
    return _load_shared(model, pretrained, dtype, _file_states(model, pretrained))


def build_clip(model: PathLike, pretrained: PathLike | None = None) -> LoadedClip:
    """As ``load_clip``, but a fresh float32 model that belongs to the caller and may be trained."""
    source = _find(os.fspath(model), None if pretrained is None else os.fspath(pretrained))
    tensors = None
    if source.weights is not None:
        tensors = load_tensors(source.weights)
        if any(name in tensors for name in _OPENAI_MARKERS):
            source.model_cfg['quick_gelu'] = True
    module = _create(source, seed=source.seed)
    if tensors is not None:
        load_into(module, _adapt(tensors, module), source=source.weights or '')
    preprocess = source.preprocess_cfg
    mean = tuple(preprocess.get('mean') or OPENAI_DATASET_MEAN)
    std = tuple(preprocess.get('std') or OPENAI_DATASET_STD)
    return LoadedClip(
        model=module,
        config={'model_cfg': source.model_cfg, 'preprocess_cfg': preprocess | {'mean': mean, 'std': std}},
        image_size=_square(module.visual, source.name),
        mean=mean,
        std=std,
        embed_dim=source.model_cfg['embed_dim'],
        context_length=source.model_cfg['text_cfg'].get('context_length', CLIPTextCfg.context_length),
        fingerprint=_fingerprint(module, source.model_cfg, mean, std),
        folder=source.folder,
    )


def save_clip(
    folder: PathLike, model: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write a model as a folder that ``load_clip`` and open_clip ('local-dir:') read.

    Args:
        config: {'model_cfg': ..., 'preprocess_cfg': ...}, or the bare architecture.
        dtype: of the stored floating-point weights, by default as they are.
    """
    model_cfg, preprocess_cfg = _split_config(dict(config), 'the configuration to save')
    preprocess_cfg = {'mean': OPENAI_DATASET_MEAN, 'std': OPENAI_DATASET_STD} | preprocess_cfg
    tensors = {
        name: tensor.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_tensors(Path(folder) / _WEIGHTS_NAME, tensors)
    write_json(Path(folder) / _CONFIG_NAME, {'model_cfg': model_cfg, 'preprocess_cfg': preprocess_cfg})


@lru_cache(maxsize=2)
def _load_shared(model: str, pretrained: str | None, dtype: str, file_states: tuple[Any, ...]) -> LoadedClip:
    clip = build_clip(model, pretrained)
    clip.model.requires_grad_(False).eval().to(DTYPES[dtype])
    return clip


def _file_states(*names: str | None) -> tuple[Any, ...]:
    """What tells a changed file or folder from the one that was loaded before."""
    states = []
    for path in (Path(name) for name in names if name is not None):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                states.append((str(file.resolve()), stat.st_mtime_ns, stat.st_size))
    return tuple(states)


# --- where things are ---------------------------------------------------------------------------------------


@dataclass
class _Source:
    """An architecture and where its weights come from: a file, or a seed."""

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    weights: Path | None = None
    seed: int | None = None


def _find(model: str, pretrained: str | None) -> _Source:
    if model.startswith('hf-hub:'):
        repository = model.removeprefix('hf-hub:')
        config = _download(model, lambda: _from_hub(repository, [_CONFIG_NAME]))
        source = _Source(model, *_read_config(config), folder=config.parent)
        if pretrained is None:
            source.weights = _download(model, lambda: _from_hub(repository, _HUB_WEIGHTS))
    elif Path(model).is_dir():
        folder = Path(model)
        source = _Source(model, *_read_config(folder / _CONFIG_NAME), folder=folder)
        if pretrained is None:
            source.weights = _weights_in(folder)
    elif model.endswith('.json'):
        source = _Source(model, *_read_config(Path(model)))
    else:
        source = _Source(model, _architecture(model))

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


def _find_release(source: _Source, tag: str) -> None:
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
            f'({_first_line(error)}); fetch it on a connected machine and name the local file or folder'
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
            f'{_WEIGHTS_NAME}, or name the file as pretrained='
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
    return _split_config(content, str(path))


def _split_config(content: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
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


# --- building -----------------------------------------------------------------------------------------------


def _create(source: _Source, seed: int | None) -> nn.Module:
    """The module of an architecture, randomly initialised; nothing is fetched for its towers."""
    options = deepcopy(source.model_cfg)
    if 'timm_model_name' in options['vision_cfg']:
        options['vision_cfg']['timm_model_pretrained'] = False
    is_hf_text = 'hf_model_name' in options['text_cfg']
    if is_hf_text:
        options['text_cfg']['hf_model_pretrained'] = False
    kind = open_clip.CLIP
    if options.pop('custom_text', False) or is_hf_text:
        kind = open_clip.CoCa if 'multimodal_cfg' in options else open_clip.CustomTextCLIP
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            return kind(**options)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f'cannot build the CLIP of {source.name}: {_first_line(error)}') from None


def _adapt(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename foreign layouts to the keys of ``module``: OpenAI, data-parallel wrappers, old text towers."""
    tensors = {key: tensor for key, tensor in tensors.items() if key not in _OPENAI_MARKERS}
    if all(key.startswith('module.') for key in tensors):
        tensors = {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
    tensors = dict(convert_state_dict(module, tensors))
    if 'positional_embedding' in tensors and not hasattr(module, 'positional_embedding'):
        tensors = convert_to_custom_text_state_dict(tensors)
    for key in ('logit_scale', 'logit_bias'):  # a scalar in some files, one element in others
        if key in tensors and isinstance(getattr(module, key, None), Tensor):
            tensors[key] = tensors[key].reshape(getattr(module, key).shape)
    tensors.pop('text.transformer.embeddings.position_ids', None)
    return tensors


def _fingerprint(
    module: nn.Module, model_cfg: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> str:
    """Hash of weights and architecture; settings that repeat open_clip's defaults do not count."""

    def essential(options: dict[str, Any], defaults: type) -> dict[str, Any]:
        ignored = ('timm_model_pretrained', 'hf_model_pretrained', 'output_tokens')
        return {
            key: value
            for key, value in options.items()
            if key not in ignored and value != getattr(defaults, key, None)
        }

    architecture = {key: value for key, value in model_cfg.items() if value} | {
        'vision_cfg': essential(model_cfg['vision_cfg'], CLIPVisionCfg),
        'text_cfg': essential(model_cfg['text_cfg'], CLIPTextCfg),
    }
    weights = {
        key: tensor for key, tensor in module.state_dict().items() if not key.endswith('num_batches_tracked')
    }
    content = {'architecture': architecture, 'pixels': [*mean, *std], 'weights': sha256_tensors(weights)}
    return sha256_json(content)[:16]


def _square(visual: Any, name: str) -> int:
    """Side of the images that an image tower takes."""
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f'the images of CLIP {name!r} are {height} x {width} pixels, expected a square')
    return height


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
