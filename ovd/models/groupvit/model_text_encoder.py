"""The text tower of a trainable model as text encoder; embeddings follow its weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ...encoders.text_encoder import TokenTower, TowerEncoder
from ...encoders.tokens.token_encoder import weights_state
from ...files import sha256_json, sha256_tensors


class HasTextTower(Protocol):
    """A model with a text tower.

    Attributes:
        embed_dim: D.
        text_encoder: token_ids [T, L] -> [T, D].
        text_settings: settings that the shapes of its weights do not show; part of the fingerprint.
        text_changes: incremented whenever weights may have changed without autograd noticing.
    """

    embed_dim: int
    text_encoder: TokenTower
    text_settings: dict[str, Any]
    text_changes: int


class ModelTextEncoder:
    """``TextBackend`` with the text tower of a model; its fingerprint depends on the weights.

    Args:
        model: read when texts are encoded, so it may still be under construction.
    """

    dtype = torch.float32

    def __init__(self, model: HasTextTower) -> None:
        self._model = model
        self._hashed: tuple[Any, str] | None = None

    @property
    def embed_dim(self) -> int:
        """D of the joint space."""
        return self._model.embed_dim

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; recomputed only after the weights may have changed."""
        tensors = {
            name: tensor
            for name, tensor in self._model.text_encoder.state_dict().items()
            if not name.endswith('num_batches_tracked')
        }
        state = (self._model.text_changes, weights_state(self._model.text_encoder))
        if self._hashed is None or self._hashed[0] != state:
            content = {'settings': self._model.text_settings, 'weights': sha256_tensors(tensors)}
            self._hashed = state, sha256_json(content)[:16]
        return self._hashed[1]

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, D], not normalised, float32; the tower is in eval mode."""
        with self._evaluating() as encoder:
            return encoder.encode(texts, batch_size)

    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T texts -> token features [T, L, W], float32, and token_mask [T, L], True = real token."""
        with self._evaluating() as encoder:
            return encoder.encode_tokens(texts)

    @contextmanager
    def _evaluating(self) -> Iterator[TowerEncoder]:
        tower = self._model.text_encoder
        context_length, vocab_size = len(tower.positional_embedding), tower.token_embedding.num_embeddings
        tokenizer = _tokenizer(context_length)
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f'the text encoder knows {vocab_size} tokens, CLIP has {tokenizer.vocab_size} of them'
            )
        training = [module for module in tower.modules() if module.training]
        try:
            yield TowerEncoder(tower.eval(), tokenizer, '', self.embed_dim, context_length)
        finally:
            for module in training:
                module.training = True


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> Any:
    return SimpleTokenizer(context_length=context_length)
