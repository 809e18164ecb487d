"""Losses that tie groups to words: a word of an image is somewhere in it, and a group means one thing."""

import torch
from torch import Tensor


def presence_loss(probs: Tensor, present: Tensor, negative_weight: float = 0.25, eps: float = 1e-6) -> Tensor:
    """Every word of an image is found in it, no other word is.

    Args:
        probs: [B, K] in 0..1, that image b shows word k somewhere.
        present: [B, K] bool.
        negative_weight: of the sum over the absent words, beside the mean over the present ones.
        eps: ``probs`` are kept this far from 0 and 1.
    Returns:
        Scalar, mean over the images; images without a present word count with their absent ones.
    """
    if probs.shape != present.shape:
        raise ValueError(
            f'probs {tuple(probs.shape)} and present {tuple(present.shape)} have different shapes'
        )
    probs = probs.float().clamp(eps, 1 - eps)
    is_present = present.to(probs.dtype)
    found = -(is_present * probs.log()).sum(1) / is_present.sum(1).clamp(min=1)
    wrong = -((1 - is_present) * (1 - probs).log()).sum(1)
    return (found + negative_weight * wrong).mean()


def coherence_loss(token_embeddings: Tensor, group_embeddings: Tensor, members: Tensor) -> Tensor:
    """One minus the cosine between each token and its group; the tokens stay, groups and choices move.

    Args:
        token_embeddings: [B, L, D], unit length; no gradient passes.
        group_embeddings: [B, G, D], unit length.
        members: [B, G, L], one-hot over G, differentiable.
    Returns:
        Scalar, mean over the tokens.
    """
    if members.shape != (len(group_embeddings), group_embeddings.shape[1], token_embeddings.shape[1]):
        raise ValueError(
            f'members {tuple(members.shape)} do not fit groups {tuple(group_embeddings.shape)} '
            f'and tokens {tuple(token_embeddings.shape)}'
        )
    with torch.autocast(members.device.type, enabled=False):
        of_token = members.float().transpose(1, 2) @ group_embeddings.float()
        return 1 - (token_embeddings.detach().float() * of_token).sum(-1).mean()
