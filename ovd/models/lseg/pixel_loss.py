"""Pixel-wise cross entropy from logits computed a few rows at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def pixel_cross_entropy(
    logits: Callable[[slice, int, int], Tensor],
    labels: Tensor,
    channels: int,
    weight: Tensor | None = None,
    ignore_index: int = -1,
    max_elements: int = 1 << 26,
) -> Tensor:
    """Mean cross entropy of the labelled pixels.

    More than ``max_elements`` logits are computed image by image, or in strips of rows, and recomputed in the
    backward pass, so memory does not grow with the number of classes.

    Args:
        logits: (images, first row, last row + 1) -> float32 logits [B', C, rows, W] of a slice of the batch.
        labels: [B, H, W], int64, 0 .. C - 1 or ``ignore_index``.
        channels: C.
        weight: [C] class weights; the mean is then weighted, as in torch's cross entropy.
        max_elements: logits held at once; affects memory and time only.
    Returns:
        scalar; 0, with zero gradients, if no pixel is labelled.
    """
    batch, height, width = labels.shape
    strip = min(height, max(1, max_elements // (channels * width)))
    images = min(batch, max(1, max_elements // (channels * width * strip))) if strip == height else 1
    recompute = (images < batch or strip < height) and torch.is_grad_enabled()

    def strip_sum(some: slice, start: int, stop: int) -> Tensor:
        target = labels[some, start:stop]
        return F.cross_entropy(
            logits(some, start, stop), target, weight, ignore_index=ignore_index, reduction='sum'
        )

    total = labels.new_zeros((), dtype=torch.float32)
    for first in range(0, batch, images):
        some = slice(first, first + images)
        for start in range(0, height, strip):
            stop = min(start + strip, height)
            if recompute:
                total = total + checkpoint(
                    strip_sum, some, start, stop, use_reentrant=False, preserve_rng_state=False
                )
            else:
                total = total + strip_sum(some, start, stop)
    valid = labels != ignore_index
    count = valid.sum() if weight is None else (weight[labels.clamp(min=0)] * valid).sum()
    return total / count.to(total).clamp(min=1e-6)
