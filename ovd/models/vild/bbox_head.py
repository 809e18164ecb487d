"""Box head of ViLD: class-agnostic boxes, text classifier, and the branches of the four variants.

Source: Gu et al., ICLR 2022, Sec. 3; reference: tensorflow/tpu:
models/official/detection/projects/vild/modeling; dyabel/detpro: mmdet/models/roi_heads.
Reading order: ViLDBBoxHead, RegionTrunk, select_detections.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from mmcv.cnn import ConvModule, build_norm_layer
from mmcv.ops import batched_nms
from mmdet.models.losses import accuracy
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures.bbox import get_box_tensor, scale_boxes
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...layers.cosine_classifier import CosineClassifier, l2_normalize, remove_classes, zero_classes
from ...options import check_option
from ...registry import MODELS
from .score_ensemble import geometric_mean, standardized_logits, text_weights


class Variant(NamedTuple):
    """Branches of a variant; see the table in Sec. 3 of the paper."""

    classifies: bool  # cross entropy against text embeddings, with a learned background
    distils: bool  # L1 to the embeddings of CLIP's image encoder
    separate: bool  # distillation has its own trunk and projection


VARIANTS = {
    'vild_text': Variant(classifies=True, distils=False, separate=False),
    'vild_image': Variant(classifies=False, distils=True, separate=False),
    'vild': Variant(classifies=True, distils=True, separate=False),
    'vild_ensemble': Variant(classifies=True, distils=True, separate=True),
}
_MAX_JOINT_BOXES = 10000  # above, NMS runs class by class to save memory
NOVEL_LOGITS = {'removed': remove_classes, 'zeroed': zero_classes}


@MODELS.register_module()
class ViLDBBoxHead(BBoxHead):
    """Class-agnostic boxes, and class logits from text embeddings.

    Args:
        mode: ``vild_text``, ``vild_image``, ``vild`` (one shared head) or ``vild_ensemble`` (two heads).
        trunk: arguments of ``RegionTrunk``, except the input size.
        embed_dim: D of the image-text model.
        temperature, test_temperature: see ``CosineClassifier``.
        novel_logits: in training, logits of novel classes are ``removed`` from the softmax, or ``zeroed`` as
            in the TensorFlow code.
        background_weight: weight of background regions in the class loss.
        box_average: divisor of the box loss: sampled regions (``regions``, mmdet) or coordinates of the
            positive regions (``positives``, the TensorFlow code).
        ensemble_trust, ensemble_without_split: exponents, see ``text_weights``.
        clip_logits: ``temperature`` divides CLIP's cosines by the test temperature; ``standardized`` is
            DetPro's scaling.
        **kwargs: arguments of mmdet's BBoxHead.
    """

    def __init__(
        self,
        mode: str = 'vild',
        in_channels: int = 256,
        roi_feat_size: int = 7,
        trunk: Mapping[str, Any] | None = None,
        embed_dim: int = 512,
        temperature: float = 0.01,
        test_temperature: float | None = None,
        novel_logits: str = 'removed',
        background_weight: float = 1.0,
        box_average: str = 'regions',
        ensemble_trust: float = 2 / 3,
        ensemble_without_split: float = 0.6,
        clip_logits: str = 'temperature',
        init_cfg: Any = None,
        **kwargs: Any,
    ) -> None:
        check_option('mode', mode, VARIANTS)
        check_option('novel_logits', novel_logits, NOVEL_LOGITS)
        check_option('box_average', box_average, ('regions', 'positives'))
        check_option('clip_logits', clip_logits, ('temperature', 'standardized'))
        super().__init__(
            with_cls=False,
            in_channels=in_channels,
            roi_feat_size=roi_feat_size,
            num_classes=0,
            reg_class_agnostic=True,
            init_cfg=init_cfg or _INIT,
            **kwargs,
        )
        self.mode = mode
        self.classifies, self.distils, separate = VARIANTS[mode]
        self.silence_novel = NOVEL_LOGITS[novel_logits]
        self.background_weight = background_weight
        self.box_average = box_average
        self.ensemble_trust = ensemble_trust
        self.ensemble_without_split = ensemble_without_split
        self.clip_logits = clip_logits

        def build_trunk() -> RegionTrunk:
            return RegionTrunk(in_channels, self.roi_feat_size, **(trunk or {}))

        def build_classifier(with_background: bool) -> CosineClassifier:
            width = self.trunk.out_channels
            return CosineClassifier(width, embed_dim, temperature, test_temperature, with_background)

        self.trunk = build_trunk()
        self.fc_reg = nn.Linear(self.trunk.out_channels, self.bbox_coder.encode_size)
        self.classifier = build_classifier(with_background=self.classifies)
        self.image_trunk = build_trunk() if separate else None
        self.image_classifier = build_classifier(with_background=False) if separate else None
        self.register_buffer('text_embeddings', torch.zeros(0, embed_dim), persistent=False)
        self.register_buffer('is_novel', torch.zeros(0, dtype=torch.bool), persistent=False)

    def set_text(self, text_embeddings: Tensor, is_novel: Tensor) -> None:
        """Use these text embeddings [K, D]; they are neither trained nor saved in checkpoints."""
        width = self.text_embeddings.shape[1]
        if text_embeddings.shape[1] != width:
            raise ValueError(
                f'the text embeddings have width {text_embeddings.shape[1]}, but the detector has '
                f'embed_dim={width}'
            )
        device = self.fc_reg.weight.device
        vectors = text_embeddings.detach().to(device, torch.float32, copy=True)
        self.register_buffer('text_embeddings', vectors, persistent=False)
        self.register_buffer('is_novel', is_novel.to(device), persistent=False)
        self.num_classes = len(vectors)

    def forward(self, roi_features: Tensor) -> tuple[Tensor | None, Tensor]:
        """RoI features [N, C, h, w] -> as :meth:`predict_regions`."""
        return self.predict_regions(self.trunk(roi_features))

    def predict_regions(self, region_features: Tensor) -> tuple[Tensor | None, Tensor]:
        """Trunk features [N, C] -> class logits [N, K + 1] (None without a classifier), box deltas [N, 4]."""
        deltas = self.fc_reg(region_features)
        if not self.classifies:
            return None, deltas
        return self.classifier(self.classifier.embed(region_features), self.text_embeddings), deltas

    def embed_pair(self, supervised: Tensor, distilled: Tensor, joint_batch: bool) -> tuple[Tensor, Tensor]:
        """Trunk features of supervised regions and embeddings of distilled regions.

        Args:
            supervised: RoI features [N, C, h, w].
            distilled: RoI features [R, C, h, w].
            joint_batch: one forward pass through a shared trunk for both.
        Returns:
            trunk features [N, C'] and unit embeddings [R, D].
        """
        if self.image_trunk is not None and self.image_classifier is not None:
            return self.trunk(supervised), self.image_classifier.embed(self.image_trunk(distilled))
        if joint_batch:
            both = self.trunk(torch.cat([supervised, distilled]))
            return both[: len(supervised)], self.classifier.embed(both[len(supervised) :])
        return self.trunk(supervised), self.classifier.embed(self.trunk(distilled))

    def loss(
        self,
        logits: Tensor | None,
        deltas: Tensor,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        box_targets: Tensor,
        box_weights: Tensor,
        num_regions: Tensor | None = None,
        num_positive: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Class and box losses.

        Args:
            logits: [N, K + 1], or None if the variant has no class loss.
            deltas: [N, 4].
            rois, labels, label_weights, box_targets, box_weights: as returned by mmdet's ``get_targets``;
                label K is background.
            num_regions, num_positive: divisors of the losses; by default the counts of this batch.
        """
        positive = labels < self.num_classes
        if num_regions is None:
            num_regions = label_weights.new_tensor(float(len(labels)))
        if num_positive is None:
            num_positive = positive.sum().to(label_weights)
        losses: dict[str, Tensor] = {}
        if logits is not None:
            logits = self.silence_novel(logits, self.is_novel)
            weights = torch.where(positive, label_weights, label_weights * self.background_weight)
            losses['loss_cls'] = self.loss_cls(
                logits, labels, weights, avg_factor=num_regions.clamp(min=1e-6)
            )
            losses['acc'] = accuracy(logits, labels)
        average = num_regions if self.box_average == 'regions' else num_positive * box_targets.shape[1]
        if self.reg_decoded_bbox:
            deltas = get_box_tensor(self.bbox_coder.decode(rois[:, 1:], deltas))
        losses['loss_bbox'] = (
            self.loss_bbox(
                deltas[positive].float(),
                box_targets[positive],
                box_weights[positive],
                avg_factor=average.clamp(min=1e-6),
            )
            if positive.any()
            else deltas.float().sum() * 0
        )
        return losses

    def score(self, roi_features: Tensor, clip_embeddings: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class probabilities [N, K] without background, and box deltas [N, 4].

        Args:
            roi_features: [N, C, h, w].
            clip_embeddings: [N, D], CLIP embeddings of the same regions; they replace the image branch of the
                ensemble.
        """
        region_features = self.trunk(roi_features)
        logits = self.classifier(self.classifier.embed(region_features), self.text_embeddings)
        probs = logits.softmax(dim=-1)[:, : self.num_classes]
        image_logits = None
        if clip_embeddings is not None:
            image_logits = self._clip_logits(clip_embeddings)
        elif self.image_trunk is not None and self.image_classifier is not None:
            image_embeddings = self.image_classifier.embed(self.image_trunk(roi_features))
            image_logits = self.image_classifier(image_embeddings, self.text_embeddings)
        if image_logits is not None:
            weight = text_weights(self.is_novel, self.ensemble_trust, self.ensemble_without_split)
            probs = geometric_mean(probs, image_logits.softmax(dim=-1), weight)
        return probs, self.fc_reg(region_features)

    def describe_scores(self, uses_clip: bool = False) -> dict[str, Any]:
        """Settings that the class scores depend on, for the protocol of a report."""
        described: dict[str, Any] = {
            'background': 'learned, left out after the softmax' if self.classifies else 'none',
            'temperature': self.classifier.test_temperature,
        }
        if uses_clip or self.image_trunk is not None:
            weights = text_weights(self.is_novel, self.ensemble_trust, self.ensemble_without_split)
            groups = (('base', ~self.is_novel), ('novel', self.is_novel))
            described['text_exponent'] = {
                name: round(float(weights[group][0]), 4) for name, group in groups if group.any()
            }
            described['image_side'] = f'CLIP on crops, {self.clip_logits}' if uses_clip else 'second head'
        return described

    def _clip_logits(self, clip_embeddings: Tensor) -> Tensor:
        with torch.autocast(clip_embeddings.device.type, enabled=False):
            cosines = l2_normalize(clip_embeddings) @ l2_normalize(self.text_embeddings).T
        if self.clip_logits == 'standardized':
            return standardized_logits(cosines)
        return cosines / self.classifier.test_temperature

    def _predict_by_feat_single(
        self,
        roi: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_meta: dict,
        rescale: bool = False,
        rcnn_test_cfg: Any = None,
    ) -> InstanceData:
        """Decode, clip and rescale the boxes of one image; per-class NMS; keep the best.

        ``cls_score`` [N, K] holds probabilities, not logits. Without ``rcnn_test_cfg`` there is no NMS.
        """
        boxes = get_box_tensor(
            self.bbox_coder.decode(roi[:, 1:], bbox_pred.float(), max_shape=img_meta['img_shape'])
        )
        if rescale and len(boxes):
            boxes = scale_boxes(boxes, [1 / s for s in img_meta['scale_factor']])
        if rcnn_test_cfg is None:
            return InstanceData(bboxes=boxes, scores=cls_score)
        return select_detections(
            boxes, cls_score, rcnn_test_cfg.score_thr, rcnn_test_cfg.nms, rcnn_test_cfg.max_per_img
        )


def select_detections(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms: Mapping[str, Any], max_per_image: int
) -> InstanceData:
    """Per-class NMS of class-agnostic boxes, then the best detections over all classes.

    A box is suppressed only by a better one of its class, so the best detections depend on the best
    candidates alone: NMS runs on growing numbers of candidates until enough survive. The result equals NMS of
    all N x K candidates, but is much faster with thousands of classes.

    Args:
        boxes: [N, 4].
        scores: [N, K].
        score_threshold: candidates with scores at or below it are dropped.
        nms: arguments of mmcv's nms, such as ``dict(type='nms', iou_threshold=0.5)``.
        max_per_image: number of detections to keep; negative keeps all.
    Returns:
        bboxes [M, 4], scores [M] in decreasing order, labels [M].
    """
    flat = scores.flatten()
    candidates = (flat > score_threshold).nonzero()[:, 0]
    candidates = candidates[flat[candidates].argsort(descending=True, stable=True)]
    if not len(candidates):
        return InstanceData(bboxes=boxes[:0], scores=flat[:0], labels=candidates)
    exact = nms.get('type', 'nms') == 'nms' and max_per_image >= 0
    count = max(10 * max_per_image, 1000) if exact else len(candidates)
    while True:
        chosen = candidates[:count]
        rows, labels = chosen // scores.shape[1], chosen % scores.shape[1]
        groups = labels.unique(return_inverse=True)[1]
        detections, kept = _suppress(boxes[rows].float(), flat[chosen].float(), groups, nms)
        if count >= len(candidates) or len(kept) >= max_per_image:
            break
        count *= 4
    if max_per_image >= 0:
        detections, kept = detections[:max_per_image], kept[:max_per_image]
    return InstanceData(bboxes=detections[:, :4], scores=detections[:, 4], labels=labels[kept])


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, nms: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """NMS within each group: detections [M, 5] (box, score), best first, and their rows [M].

    Boxes of different groups are shifted apart, in float64: with thousands of groups float32 would round to
    whole pixels, and the result would depend on the index of a class.
    """
    if not set(nms) <= {'type', 'iou_threshold'} or nms.get('type', 'nms') != 'nms':
        return batched_nms(boxes, scores, groups, nms)
    moved = boxes.double()
    if len(boxes) <= _MAX_JOINT_BOXES:
        moved = moved + groups[:, None] * (moved.max() - moved.min() + 1)
        kept = torchvision.ops.nms(moved, scores.double(), nms['iou_threshold'])
    else:
        kept = torchvision.ops.batched_nms(moved, scores.double(), groups, nms['iou_threshold'])
    return torch.cat([boxes[kept], scores[kept, None]], dim=1), kept


class RegionTrunk(BaseModule):
    """RoI features [N, C, h, w] -> region features [N, C']: 3x3 convolutions, then fully connected layers.

    Args:
        in_channels: C.
        roi_feat_size: (h, w).
        num_convs, conv_channels: convolutions and their width.
        num_fcs, fc_channels: fully connected layers and their width C'.
        norm_cfg: normalisation after each convolution.
        fc_norm_cfg: normalisation after each fully connected layer.
    """

    def __init__(
        self,
        in_channels: int,
        roi_feat_size: tuple[int, int],
        num_convs: int = 4,
        num_fcs: int = 2,
        conv_channels: int = 256,
        fc_channels: int = 1024,
        norm_cfg: Mapping[str, Any] | None = None,
        fc_norm_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [conv_channels] * num_convs
        self.convs = nn.ModuleList(
            ConvModule(width, conv_channels, 3, padding=1, norm_cfg=norm_cfg) for width in widths[:-1]
        )
        sizes = [widths[-1] * roi_feat_size[0] * roi_feat_size[1]] + [fc_channels] * num_fcs
        self.fcs = nn.ModuleList(nn.Linear(size, fc_channels) for size in sizes[:-1])
        self.fc_norms = nn.ModuleList(
            build_norm_layer(fc_norm_cfg, fc_channels)[1] for _ in range(num_fcs if fc_norm_cfg else 0)
        )
        self.out_channels = fc_channels

    def forward(self, roi_features: Tensor) -> Tensor:
        features = roi_features
        for conv in self.convs:
            features = conv(features)
        features = features.flatten(1)
        for index, fc in enumerate(self.fcs):
            features = fc(features)
            if len(self.fc_norms):
                features = self.fc_norms[index](features)
            features = F.relu(features, inplace=True)
        return features


_INIT = [
    {'type': 'Xavier', 'layer': 'Linear', 'distribution': 'uniform'},
    {'type': 'Normal', 'std': 0.001, 'override': {'name': 'fc_reg'}},
]
