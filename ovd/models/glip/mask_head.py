"""Instance masks from text: pixels of a region compared with the tokens of its phrase.

Source: Zhang et al., "GLIPv2", NeurIPS 2022, with the mask head of the code that GLIP was released with. A
region's logit is the mean over its tokens, as there; the clamp at 50,000 is applied to the mean.
Reading order: TextMaskHead.loss (regions, forward), predict (entity_vectors, paste).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures.bbox import bbox2roi, bbox_overlaps
from mmdet.structures.mask import mask_target
from mmdet.structures.mask.structures import BaseInstanceMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.gather import joint_mean
from .fusion import LIMIT


class MaskTargets(NamedTuple):
    """G objects of an image: boxes [G, 4], xyxy in pixels of the input frame; tokens [G, L] bool; masks."""

    boxes: Tensor
    tokens: Tensor
    masks: BaseInstanceMasks


class TextMaskHead(FCNMaskHead):
    """Mask head whose classes are words: convolutions on a region, then a product with token features.

    Args:
        channels: C of the maps.
        text_channels: W of the token features.
        hidden_channels: of the convolutions.
        num_convs: 3x3 convolutions before the resolution is doubled.
        norm_cfg: of these.
        roi_size: side of a region's features; masks have twice as many pixels.
        sampling_ratio: of RoIAlign; 0 takes one sample per cell of the map.
        strides: of the finest maps, which regions are taken from.
        finest_scale: regions under twice this many pixels are taken from the finest map.
        max_detections: number of the model's best boxes that are trained beside the ground truth.
        iou_thr: IoU that they need with a ground-truth box.
        threshold: probability from which a pixel belongs to a mask.
        weight: of the loss.
    """

    def __init__(
        self,
        channels: int = 256,
        text_channels: int = 768,
        hidden_channels: int = 256,
        num_convs: int = 4,
        norm_cfg: dict[str, Any] | None = None,
        roi_size: int = 14,
        sampling_ratio: int = 0,
        strides: Sequence[int] = (8, 16, 32),
        finest_scale: int = 112,
        max_detections: int = 100,
        iou_thr: float = 0.5,
        threshold: float = 0.5,
        weight: float = 1.0,
    ) -> None:
        super().__init__(
            num_convs=num_convs,
            in_channels=channels,
            conv_out_channels=hidden_channels,
            class_agnostic=True,
            norm_cfg=norm_cfg,
        )
        self.conv_logits = nn.Identity()  # replaced by the product with words
        self.extractor = SingleRoIExtractor(
            {'type': 'RoIAlign', 'output_size': roi_size, 'sampling_ratio': sampling_ratio},
            channels,
            list(strides),
            finest_scale,
        )
        self.project_text = nn.Linear(text_channels, hidden_channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_text = nn.Parameter(torch.zeros(text_channels))
        self.mask_size = 2 * roi_size
        self.max_detections = max_detections
        self.iou_thr = iou_thr
        self.threshold = threshold
        self.weight = weight

    def forward(self, maps: Sequence[Tensor], rois: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """Logits [R, S, S] of the pixels of regions.

        Args:
            maps: [B, C, h, w] of all levels, fused with the text.
            rois: [R, 5], image and xyxy in pixels of the input.
            vectors, biases: [R, D] and [R], see ``entity_vectors``.
        """
        pixels = super().forward(self.extractor(maps[: self.extractor.num_inputs], rois))
        logits = torch.einsum('rdhw,rd->rhw', pixels, vectors.to(pixels.dtype)) + biases[:, None, None]
        return logits.float().clamp(-LIMIT, LIMIT)

    def entity_vectors(self, tokens: Tensor, token_map: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [E, D] of E entities that pixels are compared with, and biases [E].

        Args:
            tokens: [L, W], fused with the image.
            token_map: [E, L] bool, the tokens of each entity.
        """
        tokens = F.normalize(tokens, dim=-1)
        weights = token_map / token_map.sum(1, keepdim=True).clamp(min=1)
        mean = weights.to(tokens.dtype) @ tokens
        has_tokens = token_map.any(1)
        vectors = self.project_text(mean / 2) * has_tokens[:, None] / self.log_scale.exp()
        return vectors, mean @ self.bias_text

    def loss(
        self,
        maps: Sequence[Tensor],
        tokens: Tensor,
        targets: Sequence[MaskTargets | None],
        detections: Sequence[Tensor],
    ) -> Tensor:
        """Binary cross-entropy, mean over the pixels of all regions with a ground-truth object.

        Args:
            maps: see ``forward``.
            tokens: [B, L, W], fused with the image.
            targets: of each image; None if it has no masks.
            detections: per image [D, 4], xyxy in pixels of the input, best first.
        """
        size = ConfigDict(mask_size=self.mask_size)
        boxes, entity_maps = [], []
        masks = [tokens.new_zeros(0, self.mask_size, self.mask_size, dtype=torch.float32)]
        for image, found in zip(targets, detections):
            if image is None:
                boxes.append(found.new_zeros(0, 4))
                entity_maps.append(tokens.new_zeros(0, tokens.shape[1], dtype=torch.bool))
            else:
                regions, assigned = self.regions(found, image.boxes)
                boxes.append(regions)
                entity_maps.append(image.tokens[assigned])
                masks.append(mask_target([regions], [assigned], [image.masks], size))
        logits = self._read(maps, tokens, boxes, entity_maps)
        pixels = F.binary_cross_entropy_with_logits(logits, torch.cat(masks), reduction='none')
        return self.weight * joint_mean(pixels.mean((1, 2)))

    def regions(self, detections: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Training boxes [R, 4], detections and all G objects, and the index [R] of the object of each."""
        objects = torch.arange(len(boxes), device=boxes.device)
        found = detections[: self.max_detections].to(boxes)
        if not len(found) or not len(boxes):
            return boxes, objects
        overlap, assigned = bbox_overlaps(found, boxes).max(1)
        fits = overlap >= self.iou_thr
        return torch.cat([found[fits], boxes]), torch.cat([assigned[fits], objects])

    def predict(
        self,
        maps: Sequence[Tensor],
        tokens: Tensor,
        token_maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
        entities: Sequence[Tensor],
    ) -> list[Tensor]:
        """Mask logits of boxes, per image [n, S, S].

        Args:
            maps, tokens: see ``loss``.
            token_maps: per image [E, L] bool, the tokens of each entity.
            boxes: per image [n, 4], xyxy in pixels of the input.
            entities: per image [n], the entity of each box.
        """
        chosen = [token_map[rows] for token_map, rows in zip(token_maps, entities)]
        return list(self._read(maps, tokens, boxes, chosen).split([len(part) for part in boxes]))

    def paste(self, instances: InstanceData, sample: Any, rescale: bool) -> Tensor:
        """Masks [n, H, W] bool of instances with ``mask_logits``, in the frame of their boxes."""
        height, width = sample.ori_shape[:2] if rescale else sample.img_shape[:2]
        if not len(instances):
            return torch.zeros(0, height, width, dtype=torch.bool, device=instances.bboxes.device)
        masks: Tensor = self._predict_by_feat_single(
            instances.mask_logits[:, None],
            instances.bboxes,
            instances.labels,
            {'ori_shape': (height, width), 'scale_factor': (1.0, 1.0)},  # the frame of the boxes already
            ConfigDict(mask_thr_binary=self.threshold),
        )
        return masks

    def _read(
        self,
        maps: Sequence[Tensor],
        tokens: Tensor,
        boxes: Sequence[Tensor],
        entity_maps: Sequence[Tensor],
    ) -> Tensor:
        """Logits [R, S, S] of all boxes of B images, each against the tokens of its entity [n, L]."""
        words = [self.entity_vectors(own, entity_map) for own, entity_map in zip(tokens, entity_maps)]
        vectors, biases = (torch.cat(parts) for parts in zip(*words))
        logits: Tensor = self(maps, bbox2roi(list(boxes)), vectors, biases)
        return logits
