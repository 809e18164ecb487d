"""Combine the class probabilities of two views of a region: the text head, and an image head or CLIP itself.

Source: ViLD, ICLR 2022, Sec. 3.4 (lambda 2/3 recalled); reference: tensorflow/tpu:
models/official/detection/projects/vild/modeling/vild_model.py; dyabel/detpro: standard_roi_head.py.
"""

import torch
from torch import Tensor


def text_weights(is_novel: Tensor, trust: float = 2 / 3, without_split: float = 0.6) -> Tensor:
    """Exponent of the text head per class.

    Base classes trust the text head, which was trained on their boxes; novel classes trust the image.

    Args:
        is_novel: [K] bool.
        trust: exponent of the trusted side.
        without_split: one exponent for all classes when no class is novel, that is, when the words carry no
            split (transfer to another data set).
    Returns:
        [K] float32 in [0, 1].
    """
    if not is_novel.any():
        return torch.full(is_novel.shape, without_split, device=is_novel.device)
    return torch.where(is_novel, 1 - trust, trust).float()


def geometric_mean(text_probs: Tensor, image_probs: Tensor, text_weight: Tensor) -> Tensor:
    """Weighted geometric mean of two probability maps [N, K]; ``text_weight`` [K] is the text side's
    exponent."""
    if text_probs.shape != image_probs.shape:
        raise ValueError(
            f'expected equal shapes [N, K], got {tuple(text_probs.shape)} and {tuple(image_probs.shape)}'
        )
    return text_probs.float() ** text_weight * image_probs.float() ** (1 - text_weight)


def standardized_logits(cosines: Tensor, scale: float = 4.0) -> Tensor:
    """Divide each region's cosines [N, K] by their own standard deviation over the classes, times ``scale``.

    How the DetPro code turns CLIP cosines into logits; with one class the deviation is undefined and 1 is
    used.
    """
    if cosines.shape[-1] < 2:
        return cosines * scale
    return cosines / cosines.std(dim=-1, keepdim=True).clamp(min=1e-8) * scale
