"""Objectives that make groups answer for single words, and a pooling that leaves the background out.

Source: multiple-instance learning of words over groups in place of GroupViT's multi-label contrast (Xu et
al., CVPR 2022, Sec. 3.2); measured in docs/groupvit_shapes.md. Reading order: ForegroundPooling, Presence,
Coherence.
"""

import torch
from torch import Tensor, nn

from ...layers.cosine_classifier import l2_normalize
from ...registry import MODELS
from .group_batch import GroupBatch
from .presence_loss import coherence_loss, presence_loss
from .readout import compose_maps


def used_groups(batch: GroupBatch) -> Tensor:
    """Which final groups have members, bool [B, G]."""
    return final_members(batch).detach().sum(-1) > 0.5


def final_members(batch: GroupBatch) -> Tensor:
    """Which tokens the final groups are made of, [B, G, L], differentiable."""
    return compose_maps(batch.output, assignment='hard').flatten(2)


def background_of(batch: GroupBatch, who: str) -> Tensor:
    """The background vector [D], unit length."""
    if batch.background is None:
        raise ValueError(f'{who} needs a model with a background vector: GroupViT(background=True)')
    return batch.background


@MODELS.register_module()
class ForegroundPooling(nn.Module):
    """The image as the sum of its groups, each the less the more it looks like background."""

    def forward(self, batch: GroupBatch) -> Tensor:
        """Image embeddings [B, D], unit length; a group weighs one minus its cosine with the background."""
        groups = batch.group_embeddings
        weights = (1 - groups @ background_of(batch, 'ForegroundPooling')).clamp(0, 1) * used_groups(batch)
        return l2_normalize((weights[..., None] * groups).sum(1))


@MODELS.register_module()
class Presence(nn.Module):
    """Each noun of an image must be the name of one of its groups, or of a few tokens; no other noun may be.

    Nouns compete with each other and with the background vector for every group, and an image shows a noun as
    much as its best group does. The nouns are those of this process's batch, the mean of a noun's prompts its
    vector; so ``noun_ids`` should list all that an image shows (``CaptionPrompts(nouns_of='all_captions')``).

    Args:
        level: 'groups' or 'tokens'.
        topk: tokens whose mean probability counts; of groups the best one does.
        weight: of the loss.
        negative_weight: see ``presence_loss``.
    """

    def __init__(
        self, level: str = 'groups', topk: int = 8, weight: float = 1.0, negative_weight: float = 0.25
    ) -> None:
        super().__init__()
        if level not in ('groups', 'tokens'):
            raise ValueError(f"level {level!r} is none of 'groups', 'tokens'")
        self.level = level
        self.topk = topk
        self.weight = weight
        self.negative_weight = negative_weight

    def forward(self, batch: GroupBatch) -> dict[str, Tensor]:
        """A loss named after the level."""
        words, present = batch_nouns(batch)
        words = torch.cat([words, background_of(batch, 'Presence')[None]])
        if self.level == 'groups':
            probs = (batch.scale * batch.group_embeddings @ words.T).softmax(-1)
            found = (probs * used_groups(batch)[..., None])[..., :-1].amax(1)
        else:
            if batch.token_embeddings is None:
                raise ValueError("Presence(level='tokens') needs an image encoder that gives tokens")
            probs = (batch.scale * batch.token_embeddings @ words.T).softmax(-1)[..., :-1]
            found = probs.topk(min(self.topk, probs.shape[1]), dim=1).values.mean(1)
        loss = presence_loss(found, present, self.negative_weight)
        return {f'loss_presence_{self.level}': self.weight * loss}


@MODELS.register_module()
class Coherence(nn.Module):
    """Tokens of a group should mean what the group means.

    Args:
        weight: of the loss.
    """

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, batch: GroupBatch) -> dict[str, Tensor]:
        """The loss ``loss_coherence``."""
        if batch.token_embeddings is None:
            raise ValueError('Coherence needs an image encoder that gives tokens')
        loss = coherence_loss(batch.token_embeddings, batch.group_embeddings, final_members(batch))
        return {'loss_coherence': self.weight * loss}


def batch_nouns(batch: GroupBatch) -> tuple[Tensor, Tensor]:
    """The K different nouns of the batch: their vectors [K, D], unit length, and who has them, bool [B, K].

    Raises:
        ValueError: samples without ``noun_ids``.
    """
    if batch.text_embeddings is None or any('noun_ids' not in sample for sample in batch.samples):
        raise ValueError('Presence needs samples with noun_ids and prompts: ovd.CaptionPrompts gives them')
    if batch.text_embeddings.shape[1] < 2:
        raise ValueError('Presence needs prompts of nouns: ovd.CaptionPrompts(count=...) gives them')
    noun_ids = torch.stack([sample.noun_ids for sample in batch.samples])
    prompts = batch.text_embeddings[:, 1:].flatten(0, 1)
    is_noun = (noun_ids >= 0).flatten()
    nouns, rows = noun_ids.flatten()[is_noun].unique(return_inverse=True)
    words = prompts.new_zeros(len(nouns), prompts.shape[-1]).index_add(0, rows, prompts[is_noun])
    present = (noun_ids[..., None] == nouns).any(1)
    return l2_normalize(words), present
