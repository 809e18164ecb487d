"""Score maps of pixel embeddings against class vectors, with a background that has no vector of its own.

Reading order: CosineScores, background_scores.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .score_maps import ScoreMaps


class CosineScores(ScoreMaps):
    """Scaled products of the rows and classes that are asked for; only the embeddings are kept.

    Args:
        pixel_embeddings: [B, D, h, w], float32.
        class_embeddings: [K, D], unit length.
        scale: multiplies the products.
        background: [B, 1, h, w], scores of what no class describes; becomes class K.
    """

    def __init__(
        self,
        pixel_embeddings: Tensor,
        class_embeddings: Tensor,
        scale: float,
        background: Tensor | None = None,
    ) -> None:
        self.batch, _, self.height, self.width = pixel_embeddings.shape
        self.device, self.dtype = pixel_embeddings.device, torch.float32
        self.pixel_embeddings, self.class_embeddings = pixel_embeddings, class_embeddings
        self.scale, self.background = scale, background
        self.channels = len(class_embeddings) + (background is not None)
        self._scaled = class_embeddings * scale

    @property
    def kept_elements(self) -> int:
        return self.pixel_embeddings.numel()

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        first, last, _ = channels.indices(self.channels)
        pixels = self.pixel_embeddings[:, :, start:stop].flatten(2)
        classes = self._scaled[first : min(last, len(self._scaled))].expand(self.batch, -1, -1)
        with torch.autocast(self.device.type, enabled=False):
            scores = torch.bmm(classes, pixels).unflatten(2, (stop - start, self.width))
        if self.background is None or last < self.channels:
            return scores
        return torch.cat([scores, self.background[:, :, start:stop]], dim=1)

    def images(self, start: int, stop: int) -> ScoreMaps:
        if (start, stop) == (0, self.batch):
            return self
        background = None if self.background is None else self.background[start:stop]
        return CosineScores(self.pixel_embeddings[start:stop], self.class_embeddings, self.scale, background)


@torch.no_grad()
def background_scores(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    scale: float,
    threshold: float | None = None,
    rivals: Tensor | None = None,
    max_elements: int = 1 << 22,
) -> Tensor:
    """A score that beats every class exactly where a pixel is background.

    Args:
        pixel_embeddings: [B, D, h, w], float32.
        class_embeddings: [K, D], unit length.
        scale: multiplies the products.
        threshold: a pixel is background where no class reaches this probability, the softmax being over the
            classes alone: the score is log(threshold) + log-sum-exp of the classes' scores.
        rivals: [S, D], vectors of words for background; the best of them competes with the classes.
        max_elements: scores that exist at once.
    Returns:
        [B, 1, h, w].
    """
    pixels = pixel_embeddings.flatten(2)
    step = max(1, max_elements // (pixels.shape[0] * pixels.shape[2]))
    parts: list[Tensor] = []
    if threshold is not None:
        sums = [torch.logsumexp(scores, 1) for scores in _chunked(pixels, class_embeddings * scale, step)]
        parts.append(torch.logsumexp(torch.stack(sums), 0) + math.log(threshold))
    if rivals is not None:
        parts += [scores.amax(1) for scores in _chunked(pixels, rivals * scale, step)]
    if not parts:
        raise ValueError('background scores need a threshold, rivals or both')
    return torch.stack(parts).amax(0)[:, None].unflatten(2, tuple(pixel_embeddings.shape[2:]))


def _chunked(pixels: Tensor, vectors: Tensor, step: int) -> Sequence[Tensor]:
    """Products [B, k, N] of some vectors at a time with pixels [B, D, N]."""
    return [part @ pixels for part in vectors.split(step)]
