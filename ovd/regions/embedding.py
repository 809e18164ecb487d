"""Embeddings of the boxes of images: crops of many images fill the batches of an image tower.

Reading order: RegionEmbedder, embed_regions, encode_crops, batches.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..encoders.image_encoder import ImageEncoder
from .crops import CropPolicy, crop_regions, join_scales

BATCH_MULTIPLE = 32


class RegionEncoder(Protocol):
    """The part of ``ImageEncoder`` that crops need."""

    image_size: int
    mean: tuple[float, ...]
    embed_dim: int
    fingerprint: str

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 RGB [N, 3, S, S] -> input of ``encode``."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Output of ``normalize`` -> embeddings [N, D], not of unit length."""


class RegionEmbedder:
    """An image tower and a crop policy; the tower is opened on first use.

    A plain object on purpose: the tower is neither trained nor saved with the model that holds it.

    Args:
        tower: arguments of ``open_image_tower``.
        crops: arguments of ``CropPolicy``.
        batch_size: crops per forward; affects memory only.
    """

    def __init__(
        self, tower: Mapping[str, Any], crops: Mapping[str, Any] | None = None, batch_size: int = 256
    ) -> None:
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}')
        self._config = dict(tower)
        self._tower: Any = None
        self.policy = CropPolicy(**(crops or {}))
        self.batch_size = batch_size

    @property
    def tower(self) -> Any:
        """A ``RegionEncoder``."""
        if self._tower is None:
            self._tower = open_image_tower(self._config)
        return self._tower

    def embed(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """See ``embed_regions``; the tower moves to the device of the images."""
        tower = self.tower.to(images[0].device)
        return embed_regions(images, boxes, tower, self.policy, self.batch_size)


def open_image_tower(config: Mapping[str, Any]) -> Any:
    """The image tower of a configuration.

    Args:
        config: ``kind`` 'clip' (default) with the arguments of ``ImageEncoder``, or 'labels' with those of
            ``load_label_tower``.
    """
    options = dict(config)
    kind = options.pop('kind', 'clip')
    if kind == 'clip':
        return ImageEncoder(**options)
    if kind == 'labels':
        from ..encoders.label_tower.tower import load_label_tower

        return load_label_tower(**options)
    raise ValueError(f"image tower kind {kind!r} is none of 'clip', 'labels'")


def embed_regions(
    images: Sequence[Tensor],
    boxes: Sequence[Tensor],
    tower: RegionEncoder,
    policy: CropPolicy,
    batch_size: int = 256,
) -> list[Tensor]:
    """Unit vectors of the boxes of images.

    Args:
        images: uint8 [3, H, W], RGB.
        boxes: [M, 4] of each image, xyxy in its pixels.
        tower: what crops are given to.
        policy: how boxes are cropped; the scales of a box are summed.
        batch_size: crops per forward; rounded up to a multiple of 32, affects memory only.
    Returns:
        [M, D] of each image, float32.
    Raises:
        ValueError: see ``crop_regions``.
    """
    batch_size = -(-batch_size // BATCH_MULTIPLE) * BATCH_MULTIPLE
    crops = (
        crop_regions(image, given, tower.image_size, policy, tower.mean)
        for image, given in zip(images, boxes)
    )
    features = [encode_crops(tower, batch) for batch in batches(crops, batch_size)]
    joined = join_scales(torch.cat(features), len(policy.scales))
    return list(joined.split([len(given) for given in boxes]))


@torch.inference_mode()
def encode_crops(encoder: RegionEncoder, crops: Tensor) -> Tensor:
    """Embeddings [N, D], float32, of uint8 crops [N, 3, S, S].

    The batch is padded with black crops to a multiple of 32: matrix products of other sizes use remainder
    kernels, with which the last bits of a row depend on the batch size and the number of threads.
    """
    padding = -len(crops) % BATCH_MULTIPLE
    padded = torch.cat([crops, crops.new_zeros((padding, *crops.shape[1:]))]) if padding else crops
    return encoder.encode(encoder.normalize(padded))[: len(crops)].float()


def batches(parts: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Regroup tensors [n, ...] into batches of ``batch_size``; the last one is shorter and may be empty."""
    waiting: list[Tensor] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += len(part)
        if held >= batch_size:
            joined = torch.cat(waiting)
            whole = held // batch_size * batch_size
            yield from joined[:whole].split(batch_size)
            waiting, held = [joined[whole:]], held - whole
    if waiting:
        yield torch.cat(waiting)
