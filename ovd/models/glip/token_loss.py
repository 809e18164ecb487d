"""Alignment loss between places of an image and tokens of a text."""

import torch.nn.functional as F
from torch import Tensor


def token_focal_loss(
    logits: Tensor, targets: Tensor, token_mask: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Binary focal loss of every place and real token, summed.

    Args:
        logits: [B, N, L].
        targets: [B, N, L] bool, True where the place shows what the token says.
        token_mask: [B, L], True = real token; the others do not count.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: how much easy pairs lose weight.
    Raises:
        ValueError: shapes that do not fit.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; on tokens: Li et al., CVPR 2022.
    """
    if logits.shape != targets.shape or token_mask.shape != (logits.shape[0], logits.shape[2]):
        raise ValueError(
            f'expected logits and targets [B, N, L] and token_mask [B, L], got {tuple(logits.shape)}, '
            f'{tuple(targets.shape)} and {tuple(token_mask.shape)}'
        )
    logits = logits.float()
    # -log of the probability of the truth, and how far that probability is from 1.
    truth = logits.where(targets, -logits)
    surprise = -F.logsigmoid(truth)
    weight = (-truth).sigmoid() ** gamma * (1 - alpha + (2 * alpha - 1) * targets)
    return (weight * surprise * token_mask[:, None]).sum()
