"""CLIP embeddings of proposals, computed from crops of the current batch (no region store)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ...encoders.image_encoder import ImageEncoder
from ...regions.crops import CropPolicy, crop_regions, join_scales


class OnlineRegionEncoder:
    """Embeds the best proposals of each image with CLIP.

    Not an ``nn.Module``: the encoder is loaded on first use and is neither trained nor saved with the
    detector. Crops are cut from the network's input, so they include every augmentation.

    Args:
        image_encoder: arguments of ``ImageEncoder``.
        crops: arguments of ``CropPolicy``; use those of the region store that the detector was trained with.
        num_regions: number of proposals per image, best objectness first.
        min_side: proposals with a shorter side, in input pixels, are not distilled.
        batch_size: crops per forward of the encoder; affects memory only.
    """

    def __init__(
        self,
        image_encoder: Mapping[str, Any],
        crops: Mapping[str, Any] | None = None,
        num_regions: int = 16,
        min_side: float = 4.0,
        batch_size: int = 256,
    ) -> None:
        self._encoder_config = dict(image_encoder)
        self._encoder: ImageEncoder | None = None
        self.policy = CropPolicy(**(crops or {}))
        self.num_regions = num_regions
        self.min_side = min_side
        self.batch_size = batch_size

    @property
    def encoder(self) -> ImageEncoder:
        """The image encoder, loaded on first use."""
        if self._encoder is None:
            self._encoder = ImageEncoder(**self._encoder_config)
        return self._encoder

    @torch.no_grad()
    def embed(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Unit embeddings [M, D] per uint8 RGB image [3, H, W] of its boxes [M, 4], xyxy in pixels."""
        encoder = self.encoder.to(images[0].device)
        crops = [
            crop_regions(image, per_image, encoder.image_size, self.policy)
            for image, per_image in zip(images, boxes)
        ]
        pixels = torch.cat(crops)
        features = [encoder.encode(encoder.normalize(part)) for part in pixels.split(self.batch_size)]
        embeddings = join_scales(torch.cat(features), len(self.policy.scales))
        return list(embeddings.split([len(per_image) for per_image in boxes]))

    def regions(self, images: Sequence[Tensor], proposals: Sequence[InstanceData]) -> list[InstanceData]:
        """Regions to distil, as loaded from a region store: bboxes [R, 4], embeddings [R, D], valid [R]."""
        chosen = []
        for instances in proposals:
            sides = (instances.bboxes[:, 2:] - instances.bboxes[:, :2]).amin(dim=1)
            chosen.append(self._best(instances[sides >= self.min_side]).bboxes)
        return [
            InstanceData(
                metainfo={'encoder_fingerprint': self.encoder.fingerprint},
                bboxes=boxes,
                embeddings=embeddings,
                valid=torch.ones(len(boxes), dtype=torch.bool, device=boxes.device),
            )
            for boxes, embeddings in zip(chosen, self.embed(images, chosen))
        ]

    def annotate(self, images: Sequence[Tensor], proposals: Sequence[InstanceData]) -> list[InstanceData]:
        """Return the best proposals of each image, with ``clip_embeddings`` [R, D] added."""
        best = [self._best(instances) for instances in proposals]
        for instances, embeddings in zip(best, self.embed(images, [item.bboxes for item in best])):
            instances.clip_embeddings = embeddings
        return best

    def _best(self, proposals: InstanceData) -> InstanceData:
        order = proposals.scores.argsort(descending=True, stable=True)[: self.num_regions]
        return proposals[order]


def rgb_images(batch_inputs: Tensor, preprocessor: Any) -> list[Tensor]:
    """Undo the normalisation of the network's input [B, 3, H, W]: B uint8 RGB images [3, H, W]."""
    pixels = batch_inputs.float()
    if preprocessor._enable_normalize:
        pixels = pixels * preprocessor.std + preprocessor.mean
    if not preprocessor._channel_conversion:
        pixels = pixels.flip(1)
    return list(pixels.round().clamp(0, 255).to(torch.uint8))
