"""GLIP's head: a tower that mixes levels, space and words; token logits, boxes and centerness per anchor.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022; numbers and conventions of the released
code (boxes of whole pixels, anchors of 8 strides, centre of a box one half pixel to the upper left).
Reading order: GLIPHead.forward (tower, align), loss (targets, terms), predict.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn import Scale
from mmcv.ops import batched_nms
from mmdet.models.losses import GIoULoss
from mmdet.models.task_modules.assigners import ATSSAssigner
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoderForGLIP
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.structures.bbox import scale_boxes
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoders.tokens.token_encoder import TokenFeatures
from ...registry import MODELS
from .dyhead import DyHeadBlock
from .fusion import LIMIT, TextLayer, VLFuse
from .token_loss import token_focal_loss
from .token_scores import class_scores

RANKINGS = ('centerness', 'probability')


class HeadOutputs(NamedTuple):
    """Raw outputs for B images with one prompt each; N anchors of all levels, row by row, finest level first.

    Attributes:
        logits: [B, N, L], alignment of anchors and tokens.
        deltas: [B, N, 4], box relative to the anchor.
        centerness: [B, N], logits.
        sizes: (h, w) of each level.
    """

    logits: Tensor
    deltas: Tensor
    centerness: Tensor
    sizes: list[tuple[int, int]]


class ImageTargets(NamedTuple):
    """Targets of an image: boxes [G, 4], xyxy in pixels of the input frame, and their tokens [G, L] bool."""

    boxes: Tensor
    tokens: Tensor


@MODELS.register_module()
class GLIPHead(BaseModule):
    """One-stage head whose classes are the tokens of a text.

    Args:
        channels: C of the pyramid's maps.
        text_channels: W of the token features.
        num_blocks: of the tower.
        fusion: arguments of ``VLFuse``; None leaves image and text apart until the last layer (shallow).
        text_layer: arguments of ``TextLayer``, one after each fusion.
        dyhead: arguments of ``DyHeadBlock``.
        strides: of the levels, in pixels.
        anchor_scale: side of the anchor in strides.
        topk: candidate anchors per box and level of the assignment.
        loss_weights: of the terms 'cls', 'bbox' and 'centerness'.
        alpha, gamma: of the focal loss.
        prior_prob: probability of a token at the start of training.
        log_scale: initial value of a learned scalar; logits are divided by its exponential. Values below 0
            help training from scratch.
        checkpointed: recompute the tower in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        channels: int = 256,
        text_channels: int = 768,
        num_blocks: int = 6,
        fusion: Mapping[str, Any] | None = None,
        text_layer: Mapping[str, Any] | None = None,
        dyhead: Mapping[str, Any] | None = None,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        anchor_scale: float = 8.0,
        topk: int = 9,
        loss_weights: Mapping[str, float] | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior_prob: float = 0.01,
        log_scale: float = 0.0,
        checkpointed: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        weights = {'cls': 1.0, 'bbox': 2.0, 'centerness': 1.0} | dict(loss_weights or {})
        if len(weights) != 3:
            raise ValueError(f"loss_weights takes 'cls', 'bbox' and 'centerness', got {sorted(weights)}")
        self.loss_weights = weights
        self.alpha, self.gamma = alpha, gamma
        self.checkpointed = checkpointed
        self.is_fused = fusion is not None
        self.blocks = nn.ModuleList(
            TowerBlock(
                channels,
                text_channels,
                None if fusion is None else {'initial_scale': 1 / num_blocks, **fusion},
                {'num_heads': 12, 'hidden_channels': 3072, **(text_layer or {})},
                dyhead or {},
            )
            for _ in range(num_blocks)
        )
        self.project_text = nn.Linear(text_channels, channels)
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        self.bias_text = nn.Parameter(torch.zeros(text_channels))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - prior_prob) / prior_prob)))
        self.boxes = nn.Conv2d(channels, 4, 1)
        self.centerness = nn.Conv2d(channels, 1, 1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in strides)
        for conv in (self.boxes, self.centerness):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

        self.anchors = AnchorGenerator(
            strides=list(strides),
            ratios=[1.0],
            octave_base_scale=anchor_scale,
            scales_per_octave=1,
            center_offset=0.5,
        )
        self.coder = DeltaXYWHBBoxCoderForGLIP(target_stds=(0.1, 0.1, 0.2, 0.2))
        self.assigner = ATSSAssigner(topk=topk, iou_calculator={'type': 'mmdet.BboxOverlaps2D_GLIP'})
        self.box_loss = GIoULoss(reduction='sum')

    def forward(self, maps: Sequence[Tensor], text: TokenFeatures) -> HeadOutputs:
        """Raw outputs for maps [B, C, h, w] of all levels and the text of each image."""
        maps, tokens = self.tower(maps, text)
        return self.align(maps, tokens)

    def tower(self, maps: Sequence[Tensor], text: TokenFeatures) -> tuple[list[Tensor], Tensor]:
        """Maps after the tower, and the tokens [B, L, W] that they are compared with."""
        mixed, tokens = list(maps), text.hidden
        for block in self.blocks:
            if self.checkpointed and self.training:
                mixed, tokens = torch.utils.checkpoint.checkpoint(
                    block, mixed, tokens, text.mask, use_reentrant=False
                )
            else:
                mixed, tokens = block(mixed, tokens, text.mask)
        return mixed, tokens if self.is_fused else text.embedded

    def align(self, maps: Sequence[Tensor], tokens: Tensor) -> HeadOutputs:
        """Token logits, boxes and centerness from the tower's maps and tokens."""
        features = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
        tokens = F.normalize(tokens, dim=-1)
        logits = features @ self.project_text(tokens / 2).transpose(1, 2) / self.log_scale.exp()
        logits = logits + (tokens @ self.bias_text + self.bias)[:, None]
        deltas = [scale(self.boxes(level)).flatten(2) for scale, level in zip(self.scales, maps, strict=True)]
        centerness = [self.centerness(level).flatten(1) for level in maps]
        return HeadOutputs(
            logits.clamp(-LIMIT, LIMIT),
            torch.cat(deltas, dim=2).transpose(1, 2),
            torch.cat(centerness, dim=1),
            [(level.shape[2], level.shape[3]) for level in maps],
        )

    def loss(
        self,
        outputs: HeadOutputs,
        token_mask: Tensor,
        targets: Sequence[ImageTargets],
        assigned_boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            token_mask: [B, L], True = token that counts.
            targets: of each image; boxes from the left edge of their first to the left edge of their last
                pixel, that is, x2 and y2 are one less than usual.
            assigned_boxes: [B, N], the result of ``assigned_boxes`` if it is known already.
        """
        deltas, centerness = outputs.deltas.float(), outputs.centerness.float()
        anchors = torch.cat(self.anchors.grid_priors(outputs.sizes, device=deltas.device))
        shifted = anchors - anchors.new_tensor([0, 0, 1, 1])
        if assigned_boxes is None:
            assigned_boxes = self.assigned_boxes(outputs.sizes, targets)
        positive_tokens = torch.zeros_like(outputs.logits, dtype=torch.bool)
        matched = torch.zeros_like(deltas)
        for index, (image, assigned) in enumerate(zip(targets, assigned_boxes)):
            positives = (assigned >= 0).nonzero().flatten()
            positive_tokens[index, positives] = image.tokens[assigned[positives]]
            matched[index, positives] = image.boxes[assigned[positives]].to(matched)
        is_positive = assigned_boxes >= 0
        positives = is_positive.nonzero()[:, 1]
        boxes = matched[is_positive]
        wanted = centerness_targets(shifted[positives], boxes)
        averages = reduce_mean(torch.stack([is_positive.sum().to(wanted), wanted.sum()])).clamp(min=1)

        decoded = self.coder.decode(anchors[positives], deltas[is_positive])
        # Sums over nothing keep every branch in the graph, which distributed training needs.
        box_loss = self.box_loss(decoded, boxes, weight=wanted) if len(boxes) else deltas.sum() * 0
        token_loss = token_focal_loss(outputs.logits, positive_tokens, token_mask, self.alpha, self.gamma)
        centerness_loss = F.binary_cross_entropy_with_logits(centerness[is_positive], wanted, reduction='sum')
        terms = {
            'cls': token_loss / averages[0],
            'bbox': box_loss / averages[1],
            'centerness': centerness_loss / averages[0],
        }
        return {f'loss_{name}': self.loss_weights[name] * term for name, term in terms.items()}

    def assigned_boxes(self, sizes: Sequence[tuple[int, int]], targets: Sequence[ImageTargets]) -> Tensor:
        """Index of the ground-truth box assigned to each anchor, [B, N]; -1 = none."""
        anchors = torch.cat(self.anchors.grid_priors(sizes, device=targets[0].boxes.device))
        anchors = anchors - anchors.new_tensor([0, 0, 1, 1])
        return torch.stack([self.assign(anchors, sizes, image.boxes) for image in targets])

    @torch.no_grad()
    def assign(self, anchors: Tensor, sizes: Sequence[tuple[int, int]], boxes: Tensor) -> Tensor:
        """Index of the box assigned to each anchor of an image, [N]; -1 = none."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, device=anchors.device)
        counts = [height * width for height, width in sizes]
        targets = InstanceData(bboxes=boxes, labels=boxes.new_zeros(len(boxes), dtype=torch.long))
        assigned = self.assigner.assign(InstanceData(priors=anchors), counts, targets)
        return assigned.gt_inds - 1

    def predict(
        self,
        outputs: HeadOutputs,
        token_maps: Sequence[Tensor],
        labels: Sequence[Sequence[int]],
        metainfos: Sequence[Mapping[str, Any]],
        test_cfg: Mapping[str, Any],
        rescale: bool = True,
    ) -> list[InstanceData]:
        """Boxes, scores and labels of B images with one text each.

        Args:
            token_maps: per image [C, L] bool, the tokens of each entity.
            labels: per image, the labels of its C entities.
            metainfos: ``img_shape`` and ``scale_factor`` of each image.
            test_cfg: see ``GLIP``.
            rescale: boxes in the frame of the original image, else of the input.
        """
        anchors = torch.cat(self.anchors.grid_priors(outputs.sizes, device=outputs.deltas.device))
        found = []
        for image, (token_map, entities, metainfo) in enumerate(zip(token_maps, labels, metainfos)):
            scores = class_scores(outputs.logits[image], token_map, test_cfg['aggregation'])
            factors = outputs.centerness[image].float().sigmoid()
            index, entity = self._candidates(scores, factors, outputs.sizes, test_cfg)
            decoded = self.coder.decode(
                anchors[index], outputs.deltas[image, index].float(), max_shape=metainfo['img_shape'][:2]
            )
            instances = InstanceData(
                bboxes=decoded,
                scores=(scores[index, entity] * factors[index]).sqrt(),
                labels=torch.tensor(entities, device=entity.device, dtype=torch.long)[entity],
            )
            found.append(_suppressed(instances, metainfo, test_cfg, rescale))
        return found

    def _candidates(
        self,
        scores: Tensor,
        factors: Tensor,
        sizes: Sequence[tuple[int, int]],
        test_cfg: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Anchor indices and entities of the best pairs on each level."""
        by_centerness = test_cfg['ranking'] == 'centerness'
        indices, entities, start = [], [], 0
        for height, width in sizes:
            part = scores[start : start + height * width]
            index, entity = (part > test_cfg['score_thr']).nonzero(as_tuple=True)
            rank = part[index, entity]
            if by_centerness:
                rank = rank * factors[start + index]
            best = rank.argsort(descending=True, stable=True)[: test_cfg['nms_pre']]
            indices.append(start + index[best])
            entities.append(entity[best])
            start += height * width
        return torch.cat(indices), torch.cat(entities)


class TowerBlock(nn.Module):
    """One block of the tower: fusion of image and text, a layer for the text, DyHead.

    Args: arguments of the three parts; without ``fusion`` the first two are left out.
    """

    def __init__(
        self,
        channels: int,
        text_channels: int,
        fusion: Mapping[str, Any] | None,
        text_layer: Mapping[str, Any],
        dyhead: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.fuse = None if fusion is None else VLFuse(channels, text_channels, **fusion)
        self.text = None if fusion is None else TextLayer(text_channels, **text_layer)
        self.dyhead = DyHeadBlock(channels, **dyhead)

    def forward(
        self, maps: Sequence[Tensor], tokens: Tensor, token_mask: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Maps [B, C, h, w] and tokens [B, L, W] -> both, changed."""
        if self.fuse is not None and self.text is not None:
            maps, tokens = self.fuse(maps, tokens, token_mask)
            tokens = self.text(tokens, token_mask)
        return self.dyhead(maps), tokens


def centerness_targets(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Centerness of the centres of anchors [N, 4] in their assigned boxes [N, 4], [N] in 0 .. 1.

    Source: Tian et al., "FCOS", ICCV 2019.
    """
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    near = torch.minimum(middle - boxes[:, :2], boxes[:, 2:] - middle).clamp(min=0)
    far = torch.maximum(middle - boxes[:, :2], boxes[:, 2:] - middle).clamp(min=1e-6)
    return (near / far).prod(1).sqrt()


def _suppressed(
    instances: InstanceData, metainfo: Mapping[str, Any], test_cfg: Mapping[str, Any], rescale: bool
) -> InstanceData:
    """Non-maximum suppression, in the frame of the original image if ``rescale``.

    Source: the pixel that is added to x2 and y2, and that it is added last: mmdet's port of GLIP.
    """
    if rescale:
        factor = [1 / number for number in metainfo['scale_factor']]
        instances.bboxes = scale_boxes(instances.bboxes, factor)
    size = instances.bboxes[:, 2:] - instances.bboxes[:, :2]
    instances = instances[(size > 0).all(1)]
    if len(instances):
        groups = instances.labels.unique(return_inverse=True)[
            1
        ]  # results must not depend on the numbering of labels
        kept, order = batched_nms(instances.bboxes, instances.scores, groups, test_cfg['nms'])
        instances = instances[order]
        instances.scores = kept[:, -1]
        instances = instances[: test_cfg['max_per_prompt']]
    instances.bboxes = instances.bboxes + instances.bboxes.new_tensor([0, 0, 1, 1])
    return instances
