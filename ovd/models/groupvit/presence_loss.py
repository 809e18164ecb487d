"""Losses of groups and words: presence of words in an image, and coherence of the tokens of a group."""

import torch
from torch import Tensor


def presence_loss(probs: Tensor, present: Tensor, negative_weight: float = 0.25, eps: float = 1e-6) -> Tensor:
    """Binary cross entropy of the words present in each image.

    Args:
        probs: [B, K] in 0..1, probability that image b shows word k.
        present: [B, K] bool.
        negative_weight: of the sum over absent words; present words are averaged.
        eps: ``probs`` are clamped to eps .. 1 - eps.
    Returns:
        Scalar, mean over the images; images without present words contribute their absent ones.
    """
    probs = probs.float().clamp(eps, 1 - eps)
    is_present = present.to(probs.dtype)
    found = -(is_present * probs.log()).sum(1) / is_present.sum(1).clamp(min=1)
    wrong = -((1 - is_present) * (1 - probs).log()).sum(1)
    return (found + negative_weight * wrong).mean()


def coherence_loss(token_embeddings: Tensor, group_embeddings: Tensor, members: Tensor) -> Tensor:
    """One minus the cosine between each token and its group.

    Args:
        token_embeddings: [B, L, D], unit length; detached.
        group_embeddings: [B, G, D], unit length.
        members: [B, G, L], one-hot over G, differentiable.
    Returns:
        Scalar, mean over the tokens.
    """
    with torch.autocast(members.device.type, enabled=False):
        of_token = members.float().transpose(1, 2) @ group_embeddings.float()
        return 1 - (token_embeddings.detach().float() * of_token).sum(-1).mean()
