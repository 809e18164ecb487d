"""TIPSv2: an image-text model whose patches were trained to agree with words, so plain cosines will do.

Source: TIPSv2, CVPR 2026; the classes are those of transformers (5.14 or newer), weights Apache-2.0.
Reading order: TipsDense (images), TipsText (words), load_tips.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...files import sha256_json, sha256_tensors
from ..loading import DTYPES, PathLike
from .tower import DenseTower

_HUB = 'hf-hub:'


class TipsDense(DenseTower):
    """The image tower of a TIPSv2.

    Args:
        model: a local folder in the layout of transformers, or 'hf-hub:owner/name'.
        windows: arguments of ``Windows``.
        dtype: 'float32', 'float16' or 'bfloat16'.
    """

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(
        self, model: PathLike, windows: Mapping[str, Any] | None = None, dtype: str = 'float32'
    ) -> None:
        super().__init__(windows)
        loaded, self.fingerprint = load_tips(os.fspath(model), dtype)
        self.vision: Any = loaded.vision_model
        config = loaded.config.vision_config
        self.embed_dim, self.image_size = int(config.hidden_size), int(config.image_size)
        self.prefix = 1 + int(config.num_register_tokens)
        self.patch_size = int(config.patch_size)
        self.dtype = DTYPES[dtype]

    @property
    def patch_stride(self) -> int:
        return self.patch_size

    def pool(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.vision(images).pooler_output
        return pooled

    def patches(self, images: Tensor) -> Tensor:
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        tokens: Tensor = self.vision(images).last_hidden_state
        return tokens[:, self.prefix :].mT.unflatten(2, grid)


class TipsText(nn.Module):
    """The text tower of a TIPSv2 with its tokenizer; a ``TextBackend``.

    Args:
        model, dtype: see ``TipsDense``.
    """

    def __init__(self, model: PathLike, dtype: str = 'float32') -> None:
        super().__init__()
        loaded, self.fingerprint = load_tips(os.fspath(model), dtype)
        self.text: Any = loaded.text_model
        self.tokenizer: Any = _load(_transformers().AutoTokenizer, os.fspath(model))
        self.embed_dim = int(loaded.config.text_config.hidden_size)
        self.max_tokens = int(loaded.config.text_config.max_position_embeddings)
        self.dtype = DTYPES[dtype]

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, D], not normalised, float32; long texts are cut."""
        pooled = [torch.zeros(0, self.embed_dim)]
        for start in range(0, len(texts), batch_size):
            ids, mask = self._tokens(texts[start : start + batch_size])
            pooled.append(self.text(input_ids=ids, attention_mask=mask).pooler_output.float().cpu())
        return torch.cat(pooled)

    @torch.no_grad()
    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T texts -> token features [T, L, W], float32, and token_mask [T, L], True = real token."""
        ids, mask = self._tokens(texts)
        return self.text(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask.bool()

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors='pt'
        )
        device = next(self.parameters()).device
        return found['input_ids'].to(device), found['attention_mask'].to(device)


@lru_cache(maxsize=2)
def load_tips(model: str, dtype: str = 'float32') -> tuple[Any, str]:
    """A frozen TIPSv2 model, shared by all who ask for it, and its fingerprint.

    Raises:
        ImportError: transformers is absent or older than 5.14.
        FileNotFoundError: no such folder, or a repository that cannot be had offline.
        ValueError: an unknown dtype, or the folder of another model.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype {dtype!r} of a TIPSv2 model is none of {list(DTYPES)}')
    transformers = _transformers()
    if not model.startswith(_HUB) and not (Path(model) / 'config.json').is_file():
        raise FileNotFoundError(f'the folder {model} of a TIPSv2 model has no config.json')
    config = _load(transformers.AutoConfig, model)
    if config.model_type != 'tipsv2':
        raise ValueError(f'{model} holds a {config.model_type!r}, expected a tipsv2')
    loaded = _load(transformers.Tipsv2Model, model).requires_grad_(False).eval()
    content = {'weights': sha256_tensors(loaded.state_dict()), 'dim': config.vision_config.hidden_size}
    return loaded.to(DTYPES[dtype]), sha256_json(content)[:16]


def _load(kind: Any, model: str) -> Any:
    """What transformers makes of a folder or repository; weights from safetensors only."""
    options: dict[str, Any] = {} if model.startswith(_HUB) else {'local_files_only': True}
    if hasattr(kind, 'main_input_name'):
        options['use_safetensors'] = True
    try:
        return kind.from_pretrained(model.removeprefix(_HUB), **options)
    except (OSError, ValueError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise FileNotFoundError(f'the TIPSv2 model {model} cannot be loaded: {reason}') from None


def _transformers() -> Any:
    try:
        transformers = importlib.import_module('transformers')
    except ImportError:
        raise ImportError('TIPSv2 needs the package transformers: pip install "transformers>=5.14"') from None
    if not hasattr(transformers, 'Tipsv2Model'):
        raise ImportError(f'TIPSv2 needs transformers 5.14 or newer, this is {transformers.__version__}')
    return transformers
