"""BERT and its relatives as a text encoder that gives features per token, trained with the model or frozen.

Nothing is downloaded unless the caller names an ``hf-hub:`` repository. The weights may also come from a
detector's checkpoint, so that a folder with the configuration and the tokenizer's files is enough.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.loading import load_into, load_tensors
from ...files import sha256_json, sha256_tensors
from ..foreign.safe_tokenizer import transformers
from ..loading import PathLike
from .bert_tokenizer import CONFIG, WEIGHTS, BertTokenizer, find_folder
from .token_encoder import TokenEncoder, TokenFeatures, pad_ids, weights_state

# What files of pre-trained BERTs hold beyond the encoder.
_UNUSED = ('pooler.*', 'cls.*', 'embeddings.position_ids')


class BertText(TokenEncoder):
    """A BERT with its tokenizer; gradients pass. A ``TextBackend``.

    Args:
        model: see ``BertTokenizer``.
        pretrained: ``init_weights`` loads the weights of that folder; otherwise they are random until a
            checkpoint is loaded.
        max_tokens: longest text, both special tokens included.
        num_layers: ``embedded`` is the mean over this many last layers.
        config: changes to ``config.json``.
        frozen: no gradients, no dropout.
    Raises:
        FileNotFoundError, ImportError: see ``BertTokenizer``.
        ValueError: not a BERT, or sizes that do not fit its configuration.
    """

    dtype = torch.float32
    tokenizer: BertTokenizer

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
        self.folder = find_folder(os.fspath(model), pretrained)
        self.tokenizer = BertTokenizer(self.folder, max_tokens)
        bert = transformers()
        settings = bert.BertConfig.from_pretrained(str(self.folder), **(config or {}))
        if settings.model_type != 'bert':
            raise ValueError(f'{self.folder / CONFIG} describes a {settings.model_type!r}, expected a BERT')
        for name, value, limit in (
            ('max_tokens', max_tokens, settings.max_position_embeddings),
            ('num_layers', num_layers, settings.num_hidden_layers),
            ('size of the tokenizer', self.tokenizer.vocab_size, settings.vocab_size),
        ):
            if value > limit:
                raise ValueError(f'{name} is {value}, the limit of the BERT in {self.folder} is {limit}')
        self.model = bert.BertModel(settings, add_pooling_layer=False)
        self.embed_dim = settings.hidden_size
        self.pretrained = pretrained
        self.num_layers = num_layers
        self.frozen = frozen
        self._hashed: tuple[Any, str] | None = None
        if frozen:
            self.model.requires_grad_(False)
            self.train(False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; computed again only after the weights were written to."""
        state = weights_state(self.model)
        if self._hashed is None or self._hashed[0] != state:
            heads = self.model.config.num_attention_heads
            content = {
                'tokens': self.tokenizer.vocabulary(),
                'settings': [self.tokenizer.max_tokens, self.num_layers, heads],
                'weights': sha256_tensors(self.model.state_dict()),
            }
            self._hashed = state, sha256_json(content)[:16]
        return self._hashed[1]

    def init_weights(self) -> None:
        """Load the folder's weights if ``pretrained``; mmengine calls it before training."""
        if self.pretrained:
            path = _weights(self.folder)
            tensors = {_standard_key(key): tensor for key, tensor in load_tensors(path).items()}
            load_into(self.model, tensors, allow_unexpected=_UNUSED, source=path)

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
        device = next(self.parameters()).device
        rows = [self.tokenizer.encode_cut(text) for text in texts]
        token_ids, token_mask = (part.to(device) for part in pad_ids(rows, self.tokenizer.pad_id))
        return self(token_ids, token_mask).hidden.float(), token_mask

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, W], mean over the real tokens, not normalised, float32."""
        pooled = [torch.zeros(0, self.embed_dim, device=next(self.parameters()).device)]
        for start in range(0, len(texts), batch_size):
            hidden, mask = self.encode_tokens(texts[start : start + batch_size])
            weights = mask / mask.sum(1, keepdim=True)
            pooled.append((hidden * weights[..., None]).sum(1))
        return torch.cat(pooled)


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f'the BERT folder {folder} has no weights: {" or ".join(WEIGHTS)}')


def _standard_key(key: str) -> str:
    """A key in today's layout: without the prefix of task models, layer norms with weight and bias."""
    key = key.removeprefix('bert.')
    return key.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')
