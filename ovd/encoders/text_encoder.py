"""The text tower of a CLIP: texts to vectors of the joint space, or to features per token."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .loading import DTYPES, PathLike, load_clip

logger = logging.getLogger(__name__)


class TextBackend(Protocol):
    """What turns texts into vectors; ``TextEncoder`` is the one for CLIP.

    Attributes:
        fingerprint: identifies weights and architecture; vectors of two fingerprints must not be mixed.
        embed_dim: D.
        dtype: precision of the computation.
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, D], not normalised, float32."""

    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T texts -> token features [T, L, W], float32, and token_mask [T, L], True = real token."""


def check_same_encoder(found: str | None, expected: str | None, what: str) -> None:
    """Refuse vectors of two encoders in one model.

    Args:
        found, expected: fingerprints; None or '' where one is not known, which is accepted.
        what: names what has the fingerprint ``found``, in the plural.
    Raises:
        ValueError: both are known and differ.
    """
    if found and expected and found != expected:
        raise ValueError(
            f'{what} come from encoder {found}, this model works with encoder {expected}: '
            'build both with the same encoder'
        )


class TowerEncoder(nn.Module):
    """A text tower with its tokenizer; stays in eval mode and gives no gradients.

    Texts are batched by length and each batch is cut to its longest text, which is exact for causal towers
    pooled at their end token. A text longer than the context is cut with its end token kept, and that is said
    once.

    Args:
        tower: maps token_ids [T, L] to [T, D].
        tokenizer: texts -> token_ids [T, context_length].
        fingerprint, embed_dim, dtype: see ``TextBackend``.
        context_length: longest text in tokens, start and end included.
    """

    def __init__(
        self,
        tower: 'TokenTower | _WholeTower',
        tokenizer: Any,
        fingerprint: str,
        embed_dim: int,
        context_length: int,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.tower = tower
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.embed_dim = embed_dim
        self.context_length = context_length
        self.dtype = dtype
        self._said_truncation = False

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, D], not normalised, float32, on the device of the weights; T may be 0.

        Args:
            batch_size: texts per forward; affects memory only.
        """
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}')
        device = next(self.parameters()).device
        if not _checked(texts):
            return torch.zeros(0, self.embed_dim, device=device)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        token_ids, lengths = self._token_ids(list(rows))
        features = torch.empty(len(rows), self.embed_dim, device=device)
        for batch in lengths.argsort(stable=True).split(batch_size):
            cut = token_ids[batch, : int(lengths[batch].max())].to(device)
            with torch.autocast(device.type, enabled=False):
                features[batch.to(device)] = self.tower(cut).float()
        return features[[rows[text] for text in texts]]

    @torch.no_grad()
    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T texts -> token features [T, L, W] after the last layer norm, and token_mask [T, L], True = real.

        L is the longest of the texts. Raises ValueError for towers that give no token features.
        """
        if isinstance(self.tower, _WholeTower):
            raise ValueError('this text tower pools its tokens itself and gives no features per token')
        token_ids, token_mask = self.tokenize(texts)
        with torch.autocast(token_ids.device.type, enabled=False):
            return self.tower.token_features(token_ids).float(), token_mask

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T >= 1 texts -> token_ids [T, L] and token_mask [T, L], on the device of the weights."""
        if not _checked(texts):
            raise ValueError('expected at least one text')
        token_ids, lengths = self._token_ids(list(texts))
        device = next(self.parameters()).device
        token_ids = token_ids[:, : int(lengths.max())].to(device)
        return token_ids, self.tower.token_mask(token_ids)

    def _token_ids(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [T, context_length] and how many of them the tower needs to see [T]."""
        token_ids = self.tokenizer(texts)
        if not self._said_truncation and hasattr(self.tokenizer, 'encode'):
            full = [texts[row] for row in token_ids[:, -1].nonzero().flatten().tolist()]
            cut = [text for text in full if len(self.tokenizer.encode(text)) + 2 > self.context_length]
            if cut:
                self._said_truncation = True
                logger.warning(
                    'a text is longer than the %d tokens of the text encoder and is cut, its end token kept '
                    '(said once): %.80r',
                    self.context_length,
                    cut[0],
                )
        return token_ids, self.tower.needed_lengths(token_ids)

    def train(self, mode: bool = True) -> 'TowerEncoder':
        """Stay in eval mode, whatever the model around it does."""
        return super().train(False)


class TextEncoder(TowerEncoder):
    """Frozen text tower of a CLIP.

    Args:
        model, pretrained, dtype: see ``load_clip``.
    """

    def __init__(self, model: PathLike, pretrained: PathLike | None = None, dtype: str = 'float32'):
        clip = load_clip(model, pretrained, dtype)
        tower = getattr(clip.model, 'text', clip.model)
        is_native = hasattr(tower, 'token_embedding') and getattr(tower, 'cls_emb', None) is None
        super().__init__(
            TokenTower(tower) if is_native else _WholeTower(tower),
            clip.tokenizer,
            clip.fingerprint,
            clip.embed_dim,
            clip.context_length,
            DTYPES[dtype],
        )


class TokenTower(nn.Module):
    """open_clip's own text transformer, run on as many tokens as its texts need; gradients pass.

    Learned prompts enter through ``forward_embeddings``, as vectors instead of token ids.

    Args:
        tower: an ``open_clip.CLIP`` or the ``text`` of a ``CustomTextCLIP``; the weights are shared with it.
    """

    def __init__(self, tower: Any):
        super().__init__()
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        is_root = hasattr(tower, 'text_pool_type')
        self.pool_type: str = tower.text_pool_type if is_root else tower.pool_type
        self.eos_id: int = getattr(tower, 'text_eos_id' if is_root else 'eos_id', 2)
        self.pad_id: int = getattr(tower, 'pad_id', 0)
        self.is_causal = tower.attn_mask is not None
        self.is_cut = self.is_causal and self.pool_type in ('argmax', 'eos')

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T, L] -> [T, D]."""
        return self.project(self.pool(token_ids))

    def forward_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Texts given as token vectors, such as learned context around a class name; gradients pass.

        ``forward_embeddings(embed(token_ids), needed_lengths(token_ids))`` equals ``forward(token_ids)``.

        Args:
            embeddings: [T, L, W], L at most the context length, without positions, which are added here.
                Start and end token belong to them.
            lengths: [T], tokens of each text, the end token included; where the tower pools its end token,
                vectors behind it have no effect on causal towers.
        Returns:
            [T, D], not normalised.
        """
        features = self._transform(embeddings)
        if self.pool_type in ('argmax', 'eos'):
            position = lengths.to(features.device) - 1
        else:
            position = self._pooled_at(embeddings[..., 0])
        return self.project(features[torch.arange(len(features), device=features.device), position])

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T, L] -> token vectors [T, L, W], without positions."""
        return self.token_embedding(token_ids)

    def pool(self, token_ids: Tensor) -> Tensor:
        """[T, L] -> [T, W], the token that stands for the text."""
        features = self.token_features(token_ids)
        return features[torch.arange(len(features), device=features.device), self._pooled_at(token_ids)]

    def project(self, pooled: Tensor) -> Tensor:
        """[T, W] -> [T, D]."""
        if isinstance(self.text_projection, nn.Module):
            return self.text_projection(pooled)
        return pooled if self.text_projection is None else pooled @ self.text_projection

    def token_features(self, token_ids: Tensor) -> Tensor:
        """[T, L] -> [T, L, W]."""
        return self._transform(self.embed(token_ids))

    def _transform(self, embeddings: Tensor) -> Tensor:
        """Token vectors [T, L, W] -> token features [T, L, W]."""
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        mask = None
        if self.is_causal:
            mask = torch.full((length, length), float('-inf'), device=x.device, dtype=x.dtype).triu_(1)
        return self.ln_final(self.transformer(x, attn_mask=mask))

    def needed_lengths(self, token_ids: Tensor) -> Tensor:
        """Up to which token each row matters, [T]: the end token where that is exact, else all."""
        if self.is_cut:
            return self._pooled_at(token_ids) + 1
        return torch.full(token_ids.shape[:1], token_ids.shape[1])

    def token_mask(self, token_ids: Tensor) -> Tensor:
        """[T, L] bool, True for real tokens, the end token included."""
        if self.pool_type in ('argmax', 'eos'):
            positions = torch.arange(token_ids.shape[1], device=token_ids.device)
            return positions <= self._pooled_at(token_ids)[:, None]
        return token_ids != self.pad_id

    def _pooled_at(self, token_ids: Tensor) -> Tensor:
        """Position of the token that stands for the text, [T]."""
        if self.pool_type == 'argmax':  # the end token has the highest id
            return token_ids.argmax(-1)
        if self.pool_type == 'eos':
            return torch.eq(token_ids, self.eos_id).int().argmax(-1)
        position = 0 if self.pool_type == 'first' else token_ids.shape[1] - 1
        return torch.full(token_ids.shape[:1], position, device=token_ids.device)


class _WholeTower(nn.Module):
    """Any other text tower (CoCa's, Hugging Face's): full length, its own pooling."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, token_ids: Tensor) -> Tensor:
        pooled = self.tower(token_ids)
        return pooled[0] if isinstance(pooled, tuple) else pooled

    def needed_lengths(self, token_ids: Tensor) -> Tensor:
        return torch.full(token_ids.shape[:1], token_ids.shape[1])

    def token_mask(self, token_ids: Tensor) -> Tensor:
        return token_ids != getattr(self.tower, 'pad_id', 0)


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise ValueError(f'expected a list of texts, got the string {texts!r}')
    return texts
