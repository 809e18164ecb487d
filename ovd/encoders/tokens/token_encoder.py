"""Text encoders that give features per token, and the tokenizers of their prompts.

A tokenizer needs no weights, so that prompts are tokenized once, where samples are loaded. Reading order:
PromptTokenizer, TokenEncoder.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...text.phrases import Prompt, PromptPart, Span, positive_map


class TokenFeatures(NamedTuple):
    """Features per token of T texts.

    Attributes:
        hidden: [T, L, W] of the last layer; arbitrary at padding.
        embedded: [T, L, W], mean of the last layers, zero at padding.
        mask: token_mask [T, L], True = real token.
    """

    hidden: Tensor
    embedded: Tensor
    mask: Tensor


class PromptTokenizer:
    """Splits texts into the tokens of an encoder and knows their characters.

    Attributes:
        max_tokens: limit of a prompt, the two special tokens at its ends included.
        pad_id: token id of padding.
        mask_id: token id of a masked token, None if the encoder has none.
        vocab_size: number of token ids.
    """

    max_tokens: int
    pad_id: int = 0
    mask_id: int | None = None
    vocab_size: int

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; prompts of two fingerprints must not be mixed."""
        raise NotImplementedError

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones not counted."""
        raise NotImplementedError

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids of a text of any length and the characters of each token, special ones included."""
        raise NotImplementedError

    def offsets(self, text: str) -> list[Span]:
        """Characters of each token of a text of any length, special ones included."""
        return self.encode(text)[1]

    def tokenize(self, prompt: Prompt, encoded: tuple[list[int], list[Span]] | None = None) -> Prompt:
        """Fill in the tokens of a prompt; one that has them is returned as it is.

        Args:
            encoded: the result of ``encode`` if it is known already.
        Raises:
            ValueError: a text of more than ``max_tokens``, or an entity without tokens.
        """
        if prompt.token_ids:
            return prompt
        ids, offsets = encoded or self.encode(prompt.text)
        check_length(prompt.text, len(ids), self.max_tokens)
        positions = tuple(tuple(tokens) for tokens in positive_map(prompt, offsets))
        return replace(
            prompt,
            token_ids=tuple(ids),
            offsets=tuple(offsets),
            positions=positions,
            parts=self._parts(prompt, positions),
        )

    def _parts(self, prompt: Prompt, positions: Sequence[tuple[int, ...]]) -> tuple[PromptPart, ...]:
        """Texts that the encoder reads by themselves; none for encoders that read the whole prompt."""
        return ()


class TokenEncoder(nn.Module):
    """A text tower with features per token: ``BertText``, ``ClipTokens``.

    Attributes:
        tokenizer: of its prompts.
        embed_dim: width W of the token features.
        frozen: no gradients, always in eval mode.
    """

    tokenizer: PromptTokenizer
    embed_dim: int
    frozen: bool

    def train(self, mode: bool = True) -> 'TokenEncoder':
        """Stay in eval mode if frozen."""
        return super().train(mode and not self.frozen)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights and the settings."""
        raise NotImplementedError

    def read(self, token_ids: Tensor, token_mask: Tensor, prompts: Sequence[Prompt]) -> TokenFeatures:
        """Features of P tokenized prompts, with gradients unless frozen.

        Args:
            token_ids, token_mask: [P, L], of the prompts, on the device of the weights.
            prompts: for encoders that read their parts one by one.
        """
        features: TokenFeatures = self(token_ids, token_mask)
        return features


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of T texts -> token_ids [T, L] and token_mask [T, L], padded to the longest, on the CPU."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def check_length(text: str, length: int, limit: int) -> None:
    """Raise ValueError for a text of more tokens than the limit."""
    if length > limit:
        raise ValueError(f'a text has {length} tokens, the limit is {limit}: {text[:60]!r}')


def weights_state(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """A value that changes when a weight is replaced or written to (except through ``.data``)."""
    return tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in module.state_dict(keep_vars=True).values()
    )
