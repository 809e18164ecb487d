"""Distillation loss: a region's embedding against CLIP's embedding of its crop."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    region_embeddings: Tensor,
    teacher_embeddings: Tensor,
    valid: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """L1 distance of unit vectors, summed over D and averaged over the valid regions.

    Args:
        region_embeddings: [M, D], unit length, from the detector.
        teacher_embeddings: [M, D], of any length and type; normalised here in float32.
        valid: [M] bool; False marks padding. By default all rows are valid.
        avg_factor: divisor of the sum; by default the number of valid rows, at least 1. Pass the mean over
            ranks to make the loss of several processes equal to that of one.
    Returns:
        scalar, float32; 0 with zero gradients if no row is valid.

    Source: ViLD, ICLR 2022, Eq. 3; the published weight 0.5 belongs to the sum over D, not the mean.
    """
    teacher = F.normalize(teacher_embeddings.detach().float(), dim=-1, eps=1e-8)
    rows = (region_embeddings.float() - teacher).abs().sum(dim=-1)
    if valid is None:
        valid = torch.ones_like(rows, dtype=torch.bool)
    if avg_factor is None:
        avg_factor = valid.sum().clamp(min=1)
    return (rows * valid).sum() / avg_factor
