"""CLIP models: open_clip's architectures with weights from a local file, a local folder or a named release.

Nothing is downloaded unless the caller names a release tag or an ``hf-hub:`` repository; every such name can
be replaced by a local path. Reading order: load_clip (shared, frozen), build_clip (fresh), save_clip.
"""

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
from torch import Tensor, nn

from ..checkpoints.loading import load_into, load_tensors
from ..checkpoints.writing import save_tensors
from ..files import sha256_json, sha256_tensors, write_json
from .foreign.safe_tokenizer import cached_folder, clip_tokenizer, refuse_code
from .foreign.transformers_clip import SIGLIP_TOWER, SiglipImageTower, convert, is_transformers_layout
from .sources import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    ClipSource,
    find_source,
    first_line,
    resolve_built_in,
    split_config,
)

PathLike = str | os.PathLike[str]

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}

# Folder inside that of a CLIP with config.json of a text tower of transformers.
TEXT_MODEL_FOLDER = 'text_model'

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
        folder: with the configuration and, it may be, the tokenizer.
        may_fetch: the user named something remote, whose tokenizer may be fetched too.
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
    may_fetch: bool = False

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts -> token_ids [T, context_length]; made on first use, since image towers need none.

        Raises:
            ValueError, FileNotFoundError, ImportError: see ``clip_tokenizer``.
        """
        text_cfg = self.config['model_cfg']['text_cfg']
        name = 'the CLIP' if self.folder is None else f'the CLIP in {self.folder}'
        return clip_tokenizer(text_cfg, self.context_length, self.folder, self.may_fetch, name)


def load_clip(model: PathLike, pretrained: PathLike | None = None, dtype: str = 'float32') -> LoadedClip:
    """Load a frozen CLIP in eval mode; callers with equal arguments share it.

    Args:
        model: an architecture of open_clip ('ViT-B-32-quickgelu'), a JSON file of one, a local folder with
            ``open_clip_config.json`` and weights, one in the layout of transformers (``config.json`` of a
            CLIP or SigLIP), the name of a model under ``$OVD_HOME`` or of a built-in one
            ('clip_tiny_shapes'), or 'hf-hub:owner/name'. Weights may be
            sharded.
        pretrained: a local weights file (.safetensors, or a PyTorch state dict, which is read weights-only),
            a release tag of open_clip ('openai'), or 'random:SEED' for random weights; a folder needs none.
        dtype: 'float32', 'float16' or 'bfloat16'; the fingerprint is that of the float32 weights.
    Raises:
        ValueError: unknown architecture or tag, no weights named, weights of another model.
        FileNotFoundError: a path that does not exist, or a named release that is not available offline.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype {dtype!r} of a CLIP model is none of {list(DTYPES)}')
    model, pretrained = resolve_built_in(model), None if pretrained is None else os.fspath(pretrained)
    return _load_shared(model, pretrained, dtype, _file_states(model, pretrained))


def build_clip(model: PathLike, pretrained: PathLike | None = None) -> LoadedClip:
    """As ``load_clip``, but a fresh float32 model that belongs to the caller and may be trained."""
    source = find_source(os.fspath(model), None if pretrained is None else os.fspath(pretrained))
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
        context_length=_context_length(source.model_cfg),
        fingerprint=_fingerprint(module, source.model_cfg, mean, std),
        folder=source.folder,
        may_fetch=source.is_remote,
    )


def load_clip_tokenizer(
    model: PathLike, pretrained: PathLike | None = None
) -> tuple[Callable[[list[str]], Tensor], int]:
    """The tokenizer and the context length of a CLIP, without its weights; see ``load_clip``."""
    source = find_source(os.fspath(model), None if pretrained is None else os.fspath(pretrained))
    length, text_cfg = _context_length(source.model_cfg), source.model_cfg['text_cfg']
    return clip_tokenizer(text_cfg, length, source.folder, source.is_remote, source.name), length


def save_clip(
    folder: PathLike, model: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write a model as a folder that ``load_clip`` and open_clip ('local-dir:') read.

    Args:
        config: {'model_cfg': ..., 'preprocess_cfg': ...}, or the bare architecture.
        dtype: of the stored floating-point weights, by default as they are.
    """
    model_cfg, preprocess_cfg = split_config(dict(config), 'the configuration to save')
    preprocess_cfg = {'mean': OPENAI_DATASET_MEAN, 'std': OPENAI_DATASET_STD} | preprocess_cfg
    tensors = {
        name: tensor.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_tensors(Path(folder) / WEIGHTS_NAME, tensors)
    write_json(Path(folder) / CONFIG_NAME, {'model_cfg': model_cfg, 'preprocess_cfg': preprocess_cfg})


def _context_length(model_cfg: Mapping[str, Any]) -> int:
    length: int = model_cfg['text_cfg'].get('context_length', CLIPTextCfg.context_length)
    return length


@lru_cache(maxsize=2)
def _load_shared(model: str, pretrained: str | None, dtype: str, file_states: tuple[Any, ...]) -> LoadedClip:
    clip = build_clip(model, pretrained)
    clip.model.requires_grad_(False).eval().to(DTYPES[dtype])
    return clip


def _file_states(*names: str | None) -> tuple[Any, ...]:
    """Name, time and size of each file: a changed file or folder is loaded again."""
    states = []
    for path in (Path(name) for name in names if name is not None):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                states.append((str(file.resolve()), stat.st_mtime_ns, stat.st_size))
    return tuple(states)


def _create(source: ClipSource, seed: int | None) -> nn.Module:
    """The module of an architecture, randomly initialised; nothing is fetched for its towers."""
    options = deepcopy(source.model_cfg)
    vision, text = options['vision_cfg'], options['text_cfg']
    timm_name = vision.get('timm_model_name')
    if timm_name is not None:
        if not isinstance(timm_name, str) or set(timm_name) & set(':/\\'):
            raise ValueError(
                f'CLIP {source.name}: vision_cfg.timm_model_name {timm_name!r} would be fetched or read from '
                f'elsewhere, expected the name of a model of timm'
            )
        vision['timm_model_pretrained'] = False
    is_hf_text = 'hf_model_name' in text
    if is_hf_text:
        text['hf_model_name'] = str(_text_model_folder(source))
        text['hf_model_pretrained'] = False
    kind = open_clip.CLIP
    if options.pop('custom_text', False) or is_hf_text:
        kind = open_clip.CoCa if 'multimodal_cfg' in options else open_clip.CustomTextCLIP
    is_siglip = vision.get('tower') == SIGLIP_TOWER
    if is_siglip:  # open_clip builds the text side; its image tower is replaced
        options['vision_cfg'] = {'layers': 1, 'width': 8, 'head_width': 8, 'patch_size': 16, 'image_size': 16}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            module: nn.Module = kind(**options)
            if is_siglip:
                settings = {key: value for key, value in vision.items() if key != 'tower'}
                module.visual = SiglipImageTower(options['embed_dim'], **settings)
            return module
    except (TypeError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f'cannot build the CLIP of {source.name}: {first_line(error)}') from None


def _text_model_folder(source: ClipSource) -> Path:
    """A local folder with the configuration of a text tower of transformers.

    Raises:
        FileNotFoundError: it would have to be fetched; the message says which file to bring.
    """
    name = str(source.model_cfg['text_cfg']['hf_model_name'])
    local = None if source.folder is None else source.folder / TEXT_MODEL_FOLDER
    found = local if local is not None and (local / 'config.json').is_file() else None
    if found is None:
        found = cached_folder(name, 'config.json')
    if found is None and source.is_remote:
        from huggingface_hub import hf_hub_download

        try:
            found = Path(hf_hub_download(name, 'config.json')).parent
        except Exception as error:  # the hub's client has no common base class for being offline
            raise FileNotFoundError(
                f'CLIP {source.name}: text_cfg.hf_model_name {name!r} is not in the local cache and cannot '
                f'be downloaded ({first_line(error)})'
            ) from None
    if found is None:
        folder = 'a folder of this CLIP' if source.folder is None else str(source.folder)
        raise FileNotFoundError(
            f'CLIP {source.name}: text_cfg.hf_model_name {name!r} would have to be fetched: put config.json '
            f'of {name} into {folder}{os.sep}{TEXT_MODEL_FOLDER}, and its tokenizer files (tokenizer.json, '
            f'tokenizer_config.json, special_tokens_map.json) into {folder}'
        )
    refuse_code(found)
    return found


def _adapt(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename foreign layouts to the keys of ``module``: OpenAI, data-parallel wrappers, old text towers."""
    tensors = {key: tensor for key, tensor in tensors.items() if key not in _OPENAI_MARKERS}
    if all(key.startswith('module.') for key in tensors):
        tensors = {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
    if is_transformers_layout(tensors):
        tensors = convert(tensors)
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
