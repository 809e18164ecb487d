"""Masked language modelling: words are hidden from the text encoder, and guessed from image and other words.

Source: Devlin et al., "BERT", NAACL 2019; in detection: Zhang et al., "GLIPv2", NeurIPS 2022.
Reading order: hide_tokens, LanguageHead.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOT_ASKED = -100  # label of a token that is not to be guessed


class HiddenTokens(NamedTuple):
    """Texts with some tokens hidden: token_ids [T, L], and labels [T, L], the true ids or ``NOT_ASKED``."""

    ids: Tensor
    labels: Tensor


def hide_tokens(
    token_ids: Tensor,
    may_hide: Tensor,
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> HiddenTokens:
    """Choose tokens to guess; most are masked, some replaced by a random one, the rest left as they are.

    Args:
        token_ids: [T, L].
        may_hide: [T, L] bool, tokens that may be chosen.
        mask_id: the token that stands for a hidden one.
        vocab_size: random tokens are drawn from 0 .. vocab_size - 1.
        rate: how often a token is chosen.
        mask_share, random_share: of the chosen ones.
    """
    chosen = may_hide & (torch.rand(token_ids.shape, device=token_ids.device) < rate)
    fate = torch.rand(token_ids.shape, device=token_ids.device)
    ids = token_ids.masked_fill(chosen & (fate < mask_share), mask_id)
    is_random = chosen & (fate >= mask_share) & (fate < mask_share + random_share)
    ids = torch.where(is_random, torch.randint_like(token_ids, vocab_size), ids)
    return HiddenTokens(ids, token_ids.where(chosen, NOT_ASKED))


class LanguageHead(nn.Module):
    """Token features -> logits of the vocabulary; and what it needs to know to hide tokens.

    Args:
        channels: W of the token features.
        vocab_size: tokens of the text encoder.
        mask_id: its token for a hidden one.
        rate, mask_share, random_share: see ``hide_tokens``.
        spare_phrases: never hide tokens of phrases that have boxes.
        weight: of the loss.
    Raises:
        ValueError: probabilities that are none.
    """

    def __init__(
        self,
        channels: int,
        vocab_size: int,
        mask_id: int,
        rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        spare_phrases: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rate <= 1 or not 0 <= mask_share <= 1 - random_share <= 1:
            raise ValueError(
                f'rate, mask_share and random_share are probabilities, got {rate}, {mask_share} and '
                f'{random_share}'
            )
        self.dense = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-12)
        self.decoder = nn.Linear(channels, vocab_size)
        self.mask_id = mask_id
        self.shares = {'rate': rate, 'mask_share': mask_share, 'random_share': random_share}
        self.spare_phrases = spare_phrases
        self.weight = weight

    def hide(self, token_ids: Tensor, may_hide: Tensor) -> HiddenTokens:
        """See ``hide_tokens``."""
        return hide_tokens(token_ids, may_hide, self.mask_id, self.decoder.out_features, **self.shares)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, W] -> logits [N, vocab_size]."""
        logits: Tensor = self.decoder(self.norm(F.gelu(self.dense(tokens))))
        return logits

    def token_losses(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each token that is asked for, [N], of features [T, L, W] and labels [T, L]."""
        is_asked = labels != NOT_ASKED
        return F.cross_entropy(self(tokens[is_asked]).float(), labels[is_asked], reduction='none')
