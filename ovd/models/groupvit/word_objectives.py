"""Word-level objectives for groups, and an image pooling without background.

Source: multiple-instance learning of words over groups in place of GroupViT's multi-label contrast (Xu et
al., CVPR 2022, Sec. 3.2); measured in docs/groupvit_shapes.md. Reading order: ForegroundPooling, Presence,
Coherence.
"""

import torch
from torch import Tensor, nn

from ...layers.cosine_classifier import l2_normalize
from ...options import check_option
from ...registry import MODELS
from .group_batch import GroupBatch
from .presence_loss import coherence_loss, presence_loss
from .readout import compose_maps


def used_groups(batch: GroupBatch) -> Tensor:
    """Whether each final group has members, bool [B, G]."""
    return final_members(batch).detach().sum(-1) > 0.5


def final_members(batch: GroupBatch) -> Tensor:
    """Assignment of tokens to final groups, [B, G, L], differentiable."""
    return compose_maps(batch.output, assignment='hard').flatten(2)


def background_of(batch: GroupBatch) -> Tensor:
    """Background embedding [D], unit length."""
    if batch.background is None:
        raise ValueError('ForegroundPooling and Presence require GroupViT(background=True)')
    return batch.background


def tokens_of(batch: GroupBatch) -> Tensor:
    """Token embeddings [B, L, D], unit length."""
    if batch.token_embeddings is None:
        raise ValueError("Coherence and Presence(level='tokens') require an image encoder with tokens")
    return batch.token_embeddings


@MODELS.register_module()
class ForegroundPooling(nn.Module):
    """Pool groups weighted by one minus their cosine with the background embedding."""

    def forward(self, batch: GroupBatch) -> Tensor:
        """Image embeddings [B, D], unit length."""
        groups = batch.group_embeddings
        weights = (1 - groups @ background_of(batch)).clamp(0, 1) * used_groups(batch)
        return l2_normalize((weights[..., None] * groups).sum(1))


@MODELS.register_module()
class Presence(nn.Module):
    """Multiple-instance loss: each noun of an image must match one of its groups, or a few tokens.

    Softmax of each group over the nouns of this process's batch and the background embedding; the probability
    of a noun in an image is the maximum over its groups. ``noun_ids`` should list all nouns of an image
    (``CaptionPrompts(nouns_of='all_captions')``).

    Args:
        level: 'groups' or 'tokens'.
        topk: at level 'tokens', the mean of the topk tokens replaces the maximum.
        weight: of the loss.
        negative_weight: see ``presence_loss``.
    """

    def __init__(
        self, level: str = 'groups', topk: int = 8, weight: float = 1.0, negative_weight: float = 0.25
    ) -> None:
        super().__init__()
        check_option('level', level, ('groups', 'tokens'))
        self.level = level
        self.topk = topk
        self.weight = weight
        self.negative_weight = negative_weight

    def forward(self, batch: GroupBatch) -> dict[str, Tensor]:
        """Compute ``loss_presence_<level>``."""
        words, present = batch_nouns(batch)
        words = torch.cat([words, background_of(batch)[None]])
        if self.level == 'groups':
            probs = (batch.scale * batch.group_embeddings @ words.T).softmax(-1)
            found = (probs * used_groups(batch)[..., None])[..., :-1].amax(1)
        else:
            probs = (batch.scale * tokens_of(batch) @ words.T).softmax(-1)[..., :-1]
            found = probs.topk(min(self.topk, probs.shape[1]), dim=1).values.mean(1)
        loss = presence_loss(found, present, self.negative_weight)
        return {f'loss_presence_{self.level}': self.weight * loss}


@MODELS.register_module()
class Coherence(nn.Module):
    """Pull groups towards the embeddings of their tokens, see ``coherence_loss``.

    Args:
        weight: of the loss.
    """

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, batch: GroupBatch) -> dict[str, Tensor]:
        """Compute ``loss_coherence``."""
        loss = coherence_loss(tokens_of(batch), batch.group_embeddings, final_members(batch))
        return {'loss_coherence': self.weight * loss}


def batch_nouns(batch: GroupBatch) -> tuple[Tensor, Tensor]:
    """Embeddings of the K distinct nouns of the batch [K, D], unit length, and their presence, bool [B, K].

    The embedding of a noun is the mean of its prompts.

    Raises:
        ValueError: samples without ``noun_ids`` or noun prompts.
    """
    texts = batch.text_embeddings
    if texts is None or texts.shape[1] < 2 or any('noun_ids' not in sample for sample in batch.samples):
        raise ValueError('Presence requires samples with noun_ids and noun prompts, as of ovd.CaptionPrompts')
    noun_ids = torch.stack([sample.noun_ids for sample in batch.samples])
    prompts = texts[:, 1:].flatten(0, 1)
    is_noun = (noun_ids >= 0).flatten()
    nouns, rows = noun_ids.flatten()[is_noun].unique(return_inverse=True)
    words = prompts.new_zeros(len(nouns), prompts.shape[-1]).index_add(0, rows, prompts[is_noun])
    present = (noun_ids[..., None] == nouns).any(1)
    return l2_normalize(words), present
