"""BERT and its relatives as a text encoder that gives features per token, trained with the model or frozen.

Nothing is downloaded unless the caller names an ``hf-hub:`` repository. The weights may also come from a
detector's checkpoint, so that a folder with the configuration and the tokenizer's files is enough.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.loading import load_into, load_tensors
from ..files import sha256_json, sha256_tensors
from .foreign.safe_tokenizer import folder_tokenizer, transformers
from .loading import PathLike
from .sources import looked_up_from, resolve_built_in
from .token_encoder import TokenEncoder, TokenFeatures, Tokens, check_length, check_texts, weights_state

_HUB = 'hf-hub:'
_CONFIG = 'config.json'
_TOKENIZERS = ('tokenizer.json', 'vocab.txt')
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
# What files of pre-trained BERTs hold beyond the encoder.
_UNUSED = ('pooler.*', 'cls.*', 'embeddings.position_ids')


class BertText(TokenEncoder):
    """A BERT with its tokenizer; gradients pass. A ``TextBackend``.

    Args:
        model: a local folder with ``config.json`` and ``tokenizer.json`` or ``vocab.txt``, the name of a
            built-in one ('bert_tiny_shapes'), or 'hf-hub:owner/name'.
        pretrained: ``init_weights`` loads the weights of that folder; otherwise they are random until a
            checkpoint brings them.
        max_tokens: longest text, both special tokens included.
        num_layers: ``embedded`` is the mean of so many last layers.
        config: changes to ``config.json``.
        frozen: no gradients, no dropout.
    Raises:
        FileNotFoundError: no such folder, or one of its files is missing.
        ImportError: the package transformers is not installed.
        ValueError: not a BERT, or a tokenizer that does not know the places of its tokens.
    """

    dtype = torch.float32

    def __init__(
        self,
        model: PathLike,
        pretrained: bool = False,
        max_tokens: int = 256,
        num_layers: int = 1,
        config: Mapping[str, Any] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        bert = transformers()
        self.folder = _folder(os.fspath(model), pretrained)
        self.tokenizer = load_tokenizer(self.folder)
        settings = bert.BertConfig.from_pretrained(str(self.folder), **(config or {}))
        if settings.model_type != 'bert':
            raise ValueError(f'{self.folder / _CONFIG} describes a {settings.model_type!r}, expected a BERT')
        if not 2 < max_tokens <= settings.max_position_embeddings:
            raise ValueError(
                f'max_tokens is {max_tokens}, the encoder has {settings.max_position_embeddings} positions'
            )
        if not 1 <= num_layers <= settings.num_hidden_layers:
            raise ValueError(
                f'num_layers is {num_layers}, the encoder has {settings.num_hidden_layers} layers'
            )
        if len(self.tokenizer) > settings.vocab_size:
            raise ValueError(
                f'{self.folder}: the tokenizer has {len(self.tokenizer)} entries, '
                f'the encoder {settings.vocab_size}'
            )
        self.model = bert.BertModel(settings, add_pooling_layer=False)
        self.embed_dim = settings.hidden_size
        self.pretrained = pretrained
        self.max_tokens = max_tokens
        self.num_layers = num_layers
        self.frozen = frozen
        self._hashed: tuple[Any, str] | None = None
        if frozen:
            self.model.requires_grad_(False)
            self.train(False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; hashed anew only after the weights were written to."""
        state = weights_state(self.model)
        if self._hashed is None or self._hashed[0] != state:
            content = {
                'tokens': sorted(self.tokenizer.get_vocab().items()),
                'settings': [self.max_tokens, self.num_layers, self.model.config.num_attention_heads],
                'weights': sha256_tensors(self.model.state_dict()),
            }
            self._hashed = state, sha256_json(content)[:16]
        return self._hashed[1]

    def init_weights(self) -> None:
        """Load the folder's weights where ``pretrained`` asks for them; mmengine calls it before training."""
        if self.pretrained:
            path = _weights(self.folder)
            tensors = {_standard_key(key): tensor for key, tensor in load_tensors(path).items()}
            load_into(self.model, tensors, allow_unexpected=_UNUSED, source=path)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones not counted."""
        return count_tokens(self.tokenizer, texts)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters of each token of a text of any length, special ones included."""
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        return [(start, end) for start, end in found['offset_mapping']]

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> Tokens:
        """See ``TokenEncoder``."""
        check_texts(texts)
        found = self.tokenizer(
            list(texts),
            padding='longest',
            truncation=truncate,
            max_length=self.max_tokens if truncate else None,
            return_offsets_mapping=True,
            verbose=False,
        )
        lengths = [sum(mask) for mask in found['attention_mask']]
        for text, length in zip(texts, lengths):
            check_length(text, length, self.max_tokens)
        device = next(self.parameters()).device
        return Tokens(
            torch.tensor(found['input_ids'], device=device),
            torch.tensor(found['attention_mask'], device=device).bool(),
            [
                [(start, end) for start, end in offsets[:length]]
                for offsets, length in zip(found['offset_mapping'], lengths)
            ],
        )

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> TokenFeatures:
        """[T, L] and [T, L] -> features per token.

        Source: the mean over layers is divided by their number once more, as in the released GLIP code.
        """
        outputs = self.model(
            input_ids=token_ids,
            attention_mask=token_mask.long(),
            output_hidden_states=self.num_layers > 1,
        )
        hidden = embedded = outputs.last_hidden_state
        if self.num_layers > 1:
            last = torch.stack(outputs.hidden_states[-self.num_layers :])
            embedded = last.mean(0) / self.num_layers
        return TokenFeatures(hidden, embedded * token_mask[..., None].to(hidden.dtype), token_mask)

    @torch.no_grad()
    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T texts -> token features [T, L, W], float32, and token_mask [T, L], True = real token."""
        tokens = self.tokenize(texts, truncate=True)
        features = self(tokens.ids, tokens.mask)
        return features.hidden.float(), tokens.mask

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, W], mean over the real tokens, not normalised, float32."""
        pooled = [torch.zeros(0, self.embed_dim, device=next(self.parameters()).device)]
        for start in range(0, len(texts), batch_size):
            hidden, mask = self.encode_tokens(texts[start : start + batch_size])
            weights = mask / mask.sum(1, keepdim=True)
            pooled.append((hidden * weights[..., None]).sum(1))
        return torch.cat(pooled)


def _folder(model: str, pretrained: bool) -> Path:
    """The local folder of a BERT, which has the files that are needed; fetched if it names the hub."""
    if model.startswith(_HUB):
        folder = _download(model.removeprefix(_HUB), pretrained)
    else:
        folder = Path(resolve_built_in(model))
        if not folder.is_dir():
            raise FileNotFoundError(
                f'the BERT folder {folder} does not exist{looked_up_from(folder)}; it needs {_CONFIG} and '
                f'one of {list(_TOKENIZERS)} (or name a repository of the hub: {_HUB}owner/name)'
            )
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(f'the BERT folder {folder} has no {_CONFIG}')
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise FileNotFoundError(f'the BERT folder {folder} has no tokenizer: one of {list(_TOKENIZERS)}')
    return folder


def _download(repository: str, pretrained: bool) -> Path:
    """The hub's snapshot of configuration and tokenizer, and of the weights if they are wanted."""
    hub: Any = importlib.import_module('huggingface_hub')
    names = [_CONFIG, 'tokenizer*', 'vocab.txt', 'special_tokens_map.json']
    try:
        listed = hub.snapshot_download(repository, allow_patterns=names)
        if pretrained:
            listed = hub.snapshot_download(repository, allow_patterns=[*names, _WEIGHTS[0]])
            if not (Path(listed) / _WEIGHTS[0]).is_file():
                listed = hub.snapshot_download(repository, allow_patterns=[*names, _WEIGHTS[1]])
    except Exception as error:  # the hub client raises dozens of kinds
        raise FileNotFoundError(
            f'{_HUB}{repository} cannot be had: {type(error).__name__}; name a local folder instead'
        ) from None
    return Path(listed)


def load_tokenizer(folder: PathLike) -> Any:
    """The tokenizer in a local folder, which tells the characters of its tokens.

    Raises:
        FileNotFoundError, ImportError, ValueError: see ``BertText``.
    """
    folder = _folder(os.fspath(folder), False)
    tokenizer = folder_tokenizer(folder)
    if not tokenizer.is_fast:
        raise ValueError(f'the tokenizer in {folder} does not tell which characters a token stands for')
    return tokenizer


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, special ones not counted."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return [len(ids) for ids in found['input_ids']]


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f'the BERT folder {folder} has no weights: one of {list(_WEIGHTS)}')


def _standard_key(key: str) -> str:
    """The key of today's layout: without the prefix of task models, layer norms with weight and bias."""
    key = key.removeprefix('bert.')
    return key.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')
