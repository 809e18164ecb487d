"""Pull the embedding of a region to the one CLIP's image tower gave to its crop."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    region_embeddings: Tensor,
    teacher_embeddings: Tensor,
    valid: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """L1 distance of unit vectors, summed over D, averaged over the valid regions.

    Args:
        region_embeddings: [M, D], unit length, from the detector.
        teacher_embeddings: [M, D], of any length and type; normalised here in float32.
        valid: [M] bool; False marks padding. By default all rows count.
        avg_factor: what the sum is divided by; by default the number of valid rows, at least 1. Give the mean
            over ranks to make the loss of several processes equal to that of one.
    Returns:
        scalar, float32; 0 with a gradient of 0 when no row is valid.
    Raises:
        ValueError: the two sides have different shapes.

    Source: ViLD, ICLR 2022, Eq. 3; the sum over D (not the mean) gives the published weight 0.5 its meaning.
    """
    if region_embeddings.shape != teacher_embeddings.shape:
        raise ValueError(
            f'expected equal shapes [M, D], got {tuple(region_embeddings.shape)} from the detector '
            f'and {tuple(teacher_embeddings.shape)} from the teacher'
        )
    teacher = F.normalize(teacher_embeddings.detach().float(), dim=-1, eps=1e-8)
    rows = (region_embeddings.float() - teacher).abs().sum(dim=-1)
    if valid is None:
        valid = torch.ones_like(rows, dtype=torch.bool)
    if avg_factor is None:
        avg_factor = valid.sum().clamp(min=1)
    return (rows * valid).sum() / avg_factor
