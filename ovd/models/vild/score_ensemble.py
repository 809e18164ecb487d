"""Combine the class probabilities of the text branch with those of the image branch or of CLIP.

Source: ViLD, ICLR 2022, Sec. 3.4 (lambda 2/3 recalled); reference: tensorflow/tpu:
models/official/detection/projects/vild/modeling/vild_model.py; dyabel/detpro: standard_roi_head.py.
"""

import torch
from torch import Tensor


def text_weights(is_novel: Tensor, trust: float = 2 / 3, without_split: float = 0.6) -> Tensor:
    """Exponent of the text branch per class.

    For base classes the text branch is trusted, as it was trained on their boxes; for novel classes the image
    branch.

    Args:
        is_novel: [K] bool.
        trust: exponent of the trusted branch.
        without_split: exponent for all classes if no class is novel, that is, if the vocabulary has no split
            (transfer to another data set).
    Returns:
        [K] float32 in [0, 1].
    """
    if not is_novel.any():
        return torch.full(is_novel.shape, without_split, device=is_novel.device)
    return torch.where(is_novel, 1 - trust, trust).float()


def geometric_mean(text_probs: Tensor, image_probs: Tensor, text_weight: Tensor) -> Tensor:
    """Weighted geometric mean of class probabilities [N, K]; ``text_weight`` [K] is the text exponent."""
    return text_probs.float() ** text_weight * image_probs.float() ** (1 - text_weight)


def standardized_logits(cosines: Tensor, scale: float = 4.0) -> Tensor:
    """Divide the cosines [N, K] by each region's standard deviation over the classes; times ``scale``.

    The DetPro code turns CLIP cosines into logits like this. With one class, a deviation of 1 is used.
    """
    if cosines.shape[-1] < 2:
        return cosines * scale
    return cosines / cosines.std(dim=-1, keepdim=True).clamp(min=1e-8) * scale
