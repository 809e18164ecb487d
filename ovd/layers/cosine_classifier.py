"""Region embeddings against class words: cosine logits with one learned background vector.

Source: Gu et al., "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
ICLR 2022, Sec. 3.2; reference: tensorflow/tpu: models/official/detection/projects/vild/modeling/vild_head.py.
Reading order: CosineClassifier, then the two ways of silencing the novel columns in training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def l2_normalize(features: Tensor) -> Tensor:
    """Scale the last axis to unit length, in float32 also under mixed precision; zero vectors stay zero."""
    return F.normalize(features.float(), dim=-1, eps=1e-8)


class CosineClassifier(nn.Module):
    """Project region features into the joint space and score them against class vectors.

    Nothing here depends on the number of classes: the words come in as an argument.

    Args:
        in_channels: C, width of the region features.
        embed_dim: D, width of the joint image-text space.
        temperature: divides the cosines in training; 0.01 multiplies them by 100.
        test_temperature: the same in evaluation mode; by default ``temperature``.
        with_background: keep a learned background vector, the last column of the logits.
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
        for name, value in (('temperature', temperature), ('test_temperature', test_temperature)):
            if value is not None and not value > 0:
                raise ValueError(f'{name} must be positive, got {value!r}')
        self.temperature = temperature
        self.test_temperature = temperature if test_temperature is None else test_temperature
        self.project = nn.Linear(in_channels, embed_dim)
        self.background = nn.Parameter(torch.randn(embed_dim) * 0.01) if with_background else None

    def embed(self, region_features: Tensor) -> Tensor:
        """Region features [N, C] -> region_embeddings [N, D], float32, unit length."""
        return l2_normalize(self.project(region_features))

    def forward(self, region_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Logits of unit region embeddings against class vectors.

        Args:
            region_embeddings: [N, D], unit length.
            text_embeddings: [K, D], of any length; normalised here, as the reference does.
        Returns:
            logits [N, K + 1] with background last, or [N, K] without a background vector; float32.
        Raises:
            ValueError: the class vectors have another width than the regions.
        """
        if text_embeddings.shape[-1] != region_embeddings.shape[-1]:
            raise ValueError(
                f'class vectors of width {text_embeddings.shape[-1]} do not fit region embeddings '
                f'of width {region_embeddings.shape[-1]}; they come from another image-text model'
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
    """Take classes out of the softmax: their logits become -inf, so they get no probability and no gradient.

    Args:
        logits: [N, K] or [N, K + 1] (background last, never removed).
        removed: [K] bool.
    Returns:
        float32 logits of the same shape; the input is left alone.
    """
    return logits.float().masked_fill(_columns(logits, removed), float('-inf'))


def zero_classes(logits: Tensor, removed: Tensor) -> Tensor:
    """Set the logits of classes to 0, so that each still adds exp(0) to the softmax sum.

    Behaviour of the official TensorFlow code (``mask_rare``); ``remove_classes`` is what was meant.
    Arguments as there.
    """
    return logits.float().masked_fill(_columns(logits, removed), 0.0)


def _columns(logits: Tensor, removed: Tensor) -> Tensor:
    """Pad ``removed`` [K] by the background column where the logits have one."""
    missing = logits.shape[-1] - len(removed)
    if missing not in (0, 1):
        raise ValueError(f'{len(removed)} classes do not fit logits of {logits.shape[-1]} columns')
    return F.pad(removed.bool(), (0, missing))
