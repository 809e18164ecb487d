"""Text encoders that give features per token: what the prompts of a detector need of them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..text.phrases import Prompt


class Tokens(NamedTuple):
    """Texts as tokens, padded to the longest.

    Attributes:
        ids: token_ids [T, L], int64.
        mask: token_mask [T, L], True = real token, special ones included.
        offsets: per text, the characters [start, end) of each of its tokens; (0, 0) for special ones.
    """

    ids: Tensor
    mask: Tensor
    offsets: list[list[tuple[int, int]]]


class TokenFeatures(NamedTuple):
    """Features per token of T texts.

    Attributes:
        hidden: [T, L, W] of the last layer; rows of padding hold numbers without meaning.
        embedded: [T, L, W], mean of the last layers, zero at padding.
        mask: token_mask [T, L], True = real token.
    """

    hidden: Tensor
    embedded: Tensor
    mask: Tensor


class TokenEncoder(nn.Module):
    """A text tower with a tokenizer that knows the characters of its tokens; ``BertText``, ``ClipTokens``.

    Attributes:
        embed_dim: width W of the token features.
        max_tokens: longest text, the two special tokens at its ends included.
        frozen: no gradients, always as in evaluation.
    """

    embed_dim: int
    max_tokens: int
    frozen: bool

    def train(self, mode: bool = True) -> 'TokenEncoder':
        """Stay in eval mode where frozen."""
        return super().train(mode and not self.frozen)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights and the settings."""
        raise NotImplementedError

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones not counted."""
        raise NotImplementedError

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters of each token of a text of any length, special ones included."""
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> Tokens:
        """T >= 1 texts -> tokens, on the device of the weights.

        Args:
            truncate: cut long texts, their end token kept.
        Raises:
            ValueError: a text longer than ``max_tokens`` that must not be cut.
        """
        raise NotImplementedError

    def read(self, tokens: Tokens, prompts: Sequence[Prompt], token_maps: Sequence[Tensor]) -> TokenFeatures:
        """Features of P prompts, with gradients unless frozen.

        Args:
            tokens: of the prompts' texts.
            prompts: for encoders to which phrases matter.
            token_maps: per prompt [C, L] bool, the tokens of its entities.
        """
        features: TokenFeatures = self(tokens.ids, tokens.mask)
        return features


def check_texts(texts: Sequence[str]) -> None:
    """Refuse (ValueError) what is no list of at least one text."""
    if isinstance(texts, str) or not texts:
        raise ValueError(f'expected a list of at least one text, got {texts!r}')


def check_length(text: str, length: int, limit: int) -> None:
    """Refuse (ValueError) a text of more tokens than there may be."""
    if length > limit:
        raise ValueError(f'a text has {length} tokens, the limit is {limit}: {text[:60]!r}')


def weights_state(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes when a weight moves or is written to through autograd's eyes."""
    return tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in module.state_dict(keep_vars=True).values()
    )
