"""Cosine logits of region embeddings and class embeddings, with one learned background embedding.

Source: Gu et al., "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
ICLR 2022, Sec. 3.2; reference: tensorflow/tpu: models/official/detection/projects/vild/modeling/vild_head.py.
Reading order: CosineClassifier, then two ways to exclude novel classes in training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def l2_normalize(features: Tensor) -> Tensor:
    """Scale the last axis to unit length, in float32 also under mixed precision; zero vectors stay zero."""
    return F.normalize(features.float(), dim=-1, eps=1e-8)


class CosineClassifier(nn.Module):
    """Project region features into the joint image-text space and score them against class embeddings.

    Holds no parameter that depends on the number of classes.

    Args:
        in_channels: C, width of the region features.
        embed_dim: D, width of the joint image-text space.
        temperature: divides the cosines in training.
        test_temperature: divides the cosines in evaluation mode; by default ``temperature``.
        with_background: learn a background embedding, the last column of the logits.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int = 512,
        temperature: float = 0.01,
        test_temperature: float | None = None,
        with_background: bool = True,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.test_temperature = temperature if test_temperature is None else test_temperature
        self.project = nn.Linear(in_channels, embed_dim)
        self.background = nn.Parameter(torch.randn(embed_dim) * 0.01) if with_background else None

    def embed(self, region_features: Tensor) -> Tensor:
        """Region features [N, C] -> region_embeddings [N, D], float32, unit length."""
        return l2_normalize(self.project(region_features))

    def forward(self, region_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Compute logits of regions and classes.

        Args:
            region_embeddings: [N, D], unit length.
            text_embeddings: [K, D]; normalised here, as in the reference.
        Returns:
            logits [N, K + 1] with background last, or [N, K] without background; float32.
        Raises:
            ValueError: ``text_embeddings`` of another width, as from another image-text model.
        """
        if text_embeddings.shape[-1] != region_embeddings.shape[-1]:
            raise ValueError(
                f'class embeddings have width {text_embeddings.shape[-1]}, region embeddings '
                f'{region_embeddings.shape[-1]}: they come from different image-text models'
            )
        temperature = self.temperature if self.training else self.test_temperature
        with torch.autocast(region_embeddings.device.type, enabled=False):
            classes = l2_normalize(text_embeddings)
            if self.background is not None:
                classes = torch.cat([classes, l2_normalize(self.background)[None]])
            return region_embeddings.float() @ classes.T / temperature

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}, test_temperature={self.test_temperature}'


def remove_classes(logits: Tensor, removed: Tensor) -> Tensor:
    """Remove classes from the softmax: logits of -inf have no probability and no gradient.

    Args:
        logits: [N, K] or [N, K + 1] (background last, never removed).
        removed: [K] bool.
    Returns:
        float32 logits of the same shape, a copy.
    """
    return logits.float().masked_fill(_columns(logits, removed), float('-inf'))


def zero_classes(logits: Tensor, removed: Tensor) -> Tensor:
    """Set the logits of classes to 0, which leaves exp(0) = 1 each in the softmax sum.

    Reproduces the official TensorFlow code (``mask_rare``), where ``remove_classes`` was intended.
    Arguments as in ``remove_classes``.
    """
    return logits.float().masked_fill(_columns(logits, removed), 0.0)


def _columns(logits: Tensor, removed: Tensor) -> Tensor:
    """Extend ``removed`` [K] by False for the background column, if the logits have one."""
    has_background = logits.shape[-1] > len(removed)
    return F.pad(removed.bool(), (0, int(has_background)))
