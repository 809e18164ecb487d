"""ViLD: a two-stage detector that classifies with text embeddings and is distilled from CLIP.

Source: Gu et al., "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
ICLR 2022, Sec. 3; reference: tensorflow/tpu: models/official/detection/projects/vild; dyabel/detpro.
Reading order: ViLD (detector), ViLDRoIHead (regions, losses, predictions); the branches of the four variants
are in bbox_head.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances, unpack_gt_instances
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from ...encoders.text_embeddings import TextEmbeddings
from ...encoders.text_encoder import check_same_encoder
from ...layers.cosine_classifier import l2_normalize
from ...registry import MODELS
from ..base import OpenVocabularyModel
from .distillation import distillation_loss
from .online_encoder import OnlineRegionEncoder, rgb_images


@MODELS.register_module()
class ViLD(OpenVocabularyModel, TwoStageDetector):
    """Faster or Mask R-CNN, with any backbone, whose classifier is a matrix of text embeddings.

    Variants that distil read ``data_sample.region_instances`` in training: boxes [R, 4] in the input frame,
    CLIP embeddings [R, D] of these regions and ``valid`` [R]; see ``LoadRegionEmbeddings``.

    Args:
        text: source of the text embeddings, see ``TextSource``.
        online_teacher: arguments of ``OnlineRegionEncoder``. CLIP embeds crops of the best proposals in every
            training step, so that no region store is needed.
        clip_ensemble: arguments of ``OnlineRegionEncoder``. At test time CLIP embeds crops of the best
            proposals, and its class probabilities replace the image branch of the ensemble. Slow: one CLIP
            forward per crop.
        **kwargs: arguments of mmdet's TwoStageDetector.
    """

    answers = 'boxes'

    def __init__(
        self,
        *args: Any,
        text: Mapping[str, Any] | None = None,
        online_teacher: Mapping[str, Any] | None = None,
        clip_ensemble: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, text=text, **kwargs)
        self.online_teacher = None if online_teacher is None else OnlineRegionEncoder(**online_teacher)
        self.clip_ensemble = None if clip_ensemble is None else OnlineRegionEncoder(**clip_ensemble)
        self._labels_checked = False

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        is_novel = torch.tensor(text_embeddings.vocabulary.is_novel)
        self._labels_checked = False
        self.roi_head.bbox_head.set_text(text_embeddings.embeddings, is_novel)

    def describe(self) -> dict[str, Any]:
        """The text embeddings, and the settings that boxes and scores depend on."""
        head, rcnn = self.roi_head.bbox_head, self.test_cfg.rcnn
        return {
            **super().describe(),
            'mode': head.mode,
            **head.describe_scores(uses_clip=self.clip_ensemble is not None),
            'objectness_power': self.roi_head.objectness_power,
            'score_threshold': rcnn.score_thr,
            'nms': dict(rcnn.nms),
            'max_per_image': rcnn.max_per_img,
        }

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of a batch: region proposals, classes, boxes, masks, distillation."""
        if not self._labels_checked:  # once: reading labels makes a GPU wait
            self._check_labels(batch_data_samples)
            self._labels_checked = True
        features = self.extract_feat(batch_inputs)
        losses: dict[str, Tensor] = {}
        if self.with_rpn:
            proposal_cfg = self.train_cfg.get('rpn_proposal', self.test_cfg.rpn)
            rpn_losses, proposals = self.rpn_head.loss_and_predict(
                features,
                [_without_classes(sample) for sample in batch_data_samples],
                proposal_cfg=proposal_cfg,
            )
            losses.update(
                (name if 'rpn' in name else f'rpn_{name}', loss) for name, loss in rpn_losses.items()
            )
        else:
            proposals = [sample.proposals for sample in batch_data_samples]
        if self.roi_head.bbox_head.distils:
            if self.online_teacher is not None:
                images = rgb_images(batch_inputs, self.data_preprocessor)
                for sample, regions in zip(
                    batch_data_samples, self.online_teacher.regions(images, proposals)
                ):
                    sample.region_instances = regions
            self._check_regions(batch_data_samples)
        losses.update(self.roi_head.loss(features, proposals, batch_data_samples))
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Detections of a batch; ``rescale`` gives boxes in pixels of the original images."""
        self.prepare_text()
        features = self.extract_feat(batch_inputs)
        if batch_data_samples[0].get('proposals', None) is None:
            proposals = self.rpn_head.predict(features, batch_data_samples, rescale=False)
        else:
            proposals = [sample.proposals for sample in batch_data_samples]
        if self.clip_ensemble is not None:
            images = rgb_images(batch_inputs, self.data_preprocessor)
            proposals = self.clip_ensemble.annotate(images, proposals)
        results = self.roi_head.predict(features, proposals, batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> tuple:
        self.prepare_text()
        return super()._forward(batch_inputs, batch_data_samples)

    def check_training_classes(self, metainfo: Mapping[str, Any]) -> None:
        """Refuse training data whose base classes differ from those of the vocabulary.

        A base class without boxes would only ever be a negative; boxes of a novel class are leakage.

        Args:
            metainfo: of the data set: ``classes``, and ``base_classes``, those with boxes.
        """
        base = metainfo.get('base_classes')
        if base is None:
            return
        pairs = list(zip(metainfo['classes'], self.vocabulary.is_novel))
        if leaked := [name for name, is_novel in pairs if is_novel and name in base]:
            raise ValueError(
                f'leakage: {leaked[0]!r} is novel in the vocabulary of the model, but a base class of the '
                'training data'
            )
        if without := [name for name, is_novel in pairs if not is_novel and name not in base]:
            raise ValueError(
                f'{len(without)} classes, such as {without[0]!r}, have no boxes in the split of the training '
                'data, but are not novel in the vocabulary of the model: they would be trained as negatives '
                'only. Mark them as novel, as the built-in vocabulary coco_ov80 does'
            )

    def _check_labels(self, batch_data_samples: Sequence[DetDataSample]) -> None:
        """Refuse boxes of novel classes: leakage."""
        vocabulary = self.text_embeddings.vocabulary
        labels = torch.cat([sample.gt_instances.labels for sample in batch_data_samples])
        for label in labels.unique().tolist():
            if vocabulary.is_novel[label]:
                raise ValueError(
                    f'leakage: the training data has boxes of the novel class {vocabulary.names[label]!r}'
                )

    def _check_regions(self, batch_data_samples: Sequence[DetDataSample]) -> None:
        """Region embeddings must exist, and come from the CLIP of the text embeddings; no device access."""
        known = self.text_embeddings.encoder_fingerprint
        for sample in batch_data_samples:
            if 'region_instances' not in sample:
                raise ValueError(
                    f'mode {self.roi_head.bbox_head.mode!r} needs region embeddings: add '
                    "dict(type='ovd.LoadRegionEmbeddings', store=...) before 'ovd.PackDetInputs', "
                    'or give the model an `online_teacher`'
                )
            source = sample.region_instances.metainfo.get('encoder_fingerprint')
            check_same_encoder(source, known, 'the region embeddings')


@MODELS.register_module()
class ViLDRoIHead(StandardRoIHead):
    """Sample regions, pool their features and run the branches of the box head.

    Args:
        distill_weight: w, weight of the distillation loss.
        joint_batch: pass supervised and distilled regions through a shared trunk together, so that batch
            normalisation sees both, as in the TensorFlow code; False: separately, as in DetPro.
        objectness_power: class scores are multiplied by RPN objectness to this power at test time.
        **kwargs: arguments of mmdet's StandardRoIHead; the mask head must be class-agnostic.
    """

    def __init__(
        self,
        *args: Any,
        distill_weight: float = 0.5,
        joint_batch: bool = True,
        objectness_power: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.distill_weight = distill_weight
        self.joint_batch = joint_batch
        self.objectness_power = objectness_power
        if self.with_mask and not self.mask_head.class_agnostic:
            raise ValueError('mask_head.class_agnostic must be True: the vocabulary can change')

    def loss(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: list[InstanceData],
        batch_data_samples: list[DetDataSample],
    ) -> dict[str, Tensor]:
        """Losses of the sampled regions, and of the distilled regions if the variant distils."""
        sampled = self._sample(x, rpn_results_list, batch_data_samples)
        rois = bbox2roi([result.priors for result in sampled])
        distilled = None
        if self.bbox_head.distils:
            distilled = gather_regions([sample.region_instances for sample in batch_data_samples])
            roi_features = self._pool(x, torch.cat([rois, distilled.rois.to(rois)]))
        else:
            roi_features = self._pool(x, rois)
        supervised, student = roi_features[: len(rois)], roi_features[len(rois) :]
        num_positive = rois.new_tensor(float(sum(len(result.pos_priors) for result in sampled)))
        num_valid = (
            num_positive.new_tensor(0.0) if distilled is None else distilled.valid.sum().to(num_positive)
        )
        averages = reduce_mean(torch.stack([rois.new_tensor(float(len(rois))), num_positive, num_valid]))

        head = self.bbox_head
        if distilled is None:
            region_features = head.trunk(supervised)
        else:
            region_features, student_embeddings = head.embed_pair(supervised, student, self.joint_batch)
        logits, deltas = head.predict_regions(region_features)
        targets = head.get_targets(sampled, self.train_cfg)
        losses = head.loss(logits, deltas, rois, *targets, num_regions=averages[0], num_positive=averages[1])
        if distilled is not None:
            losses.update(self._distill(student_embeddings, distilled, averages[2]))
        if self.with_mask:
            mask = self.mask_loss(
                x, sampled, supervised, [sample.gt_instances for sample in batch_data_samples]
            )
            share = num_positive / averages[1].clamp(min=1e-6)
            losses.update((name, loss * share) for name, loss in mask['loss_mask'].items())
        return losses

    def predict_bbox(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Boxes, scores and labels per image; ``clip_embeddings`` of the proposals are used if present."""
        counts = [len(proposals) for proposals in rpn_results_list]
        rois = bbox2roi([proposals.bboxes for proposals in rpn_results_list])
        if len(rois) == 0:
            return empty_instances(
                batch_img_metas,
                rois.device,
                task_type='bbox',
                box_type=self.bbox_head.predict_box_type,
                num_classes=self.bbox_head.num_classes,
                score_per_cls=rcnn_test_cfg is None,
            )
        clip_embeddings = None
        if all('clip_embeddings' in proposals for proposals in rpn_results_list):
            clip_embeddings = torch.cat([proposals.clip_embeddings for proposals in rpn_results_list])
        scores, deltas = self.bbox_head.score(self._pool(x, rois), clip_embeddings)
        if self.objectness_power:
            objectness = torch.cat([proposals.scores for proposals in rpn_results_list])
            scores = scores * objectness.float().clamp(min=0)[:, None] ** self.objectness_power
        return self.bbox_head.predict_by_feat(
            rois.split(counts),
            scores.split(counts),
            deltas.split(counts),
            batch_img_metas,
            rcnn_test_cfg=rcnn_test_cfg,
            rescale=rescale,
        )

    def _sample(
        self, x: tuple[Tensor, ...], proposals: list[InstanceData], batch_data_samples: list[DetDataSample]
    ) -> list[SamplingResult]:
        """Assign proposals to ground truth and sample the regions of the supervised losses."""
        ground_truth, ignored, _ = unpack_gt_instances(batch_data_samples)
        sampled = []
        for index, (instances, truth, ignore) in enumerate(zip(proposals, ground_truth, ignored)):
            instances.priors = instances.pop('bboxes')
            assigned = self.bbox_assigner.assign(instances, truth, ignore)
            features = [level[index][None] for level in x]
            sampled.append(self.bbox_sampler.sample(assigned, instances, truth, feats=features))
        return sampled

    def _pool(self, x: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """RoI features [N, C, h, w] of boxes [N, 5] (image, x1, y1, x2, y2) in the input frame."""
        features = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        return self.shared_head(features) if self.with_shared_head else features

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        roi_features = self._pool(x, rois)
        logits, deltas = self.bbox_head(roi_features)
        return {'cls_score': logits, 'bbox_pred': deltas, 'bbox_feats': roi_features}

    def _distill(self, student: Tensor, distilled: 'Regions', average: Tensor) -> dict[str, Tensor]:
        teacher, valid = distilled.embeddings.to(student.device), distilled.valid.to(student.device)
        loss = distillation_loss(student, teacher, valid, avg_factor=average.clamp(min=1e-6))
        with torch.no_grad():
            cosine = ((student * l2_normalize(teacher)).sum(-1) * valid).sum() / valid.sum().clamp(min=1)
        return {'loss_distill': self.distill_weight * loss, 'distill_cosine': cosine}


class Regions(NamedTuple):
    """Regions of a batch to distil: rois [R, 5] (image, x1, y1, x2, y2), embeddings [R, D], valid [R]."""

    rois: Tensor
    embeddings: Tensor
    valid: Tensor


def gather_regions(region_instances: Sequence[InstanceData]) -> Regions:
    """Concatenate the valid regions of a batch; if there are none, add one dummy region, marked invalid.

    With at least one region every parameter receives a gradient, which distributed training needs.
    """
    rois, embeddings = [], []
    for index, regions in enumerate(region_instances):
        boxes = regions.bboxes[regions.valid]
        rois.append(torch.cat([boxes.new_full((len(boxes), 1), index), boxes], dim=1))
        embeddings.append(regions.embeddings[regions.valid])
    joined = torch.cat(rois)
    with torch.autocast(joined.device.type, enabled=False):  # torch.cat of float16 fails under bfloat16
        teacher = torch.cat(embeddings)
    if len(joined):
        return Regions(joined, teacher, torch.ones(len(joined), dtype=torch.bool, device=joined.device))
    dummy = joined.new_tensor([[0.0, 0.0, 0.0, 8.0, 8.0]])
    invalid = torch.zeros(1, dtype=torch.bool, device=joined.device)
    return Regions(dummy, teacher.new_zeros(1, teacher.shape[1]), invalid)


def _without_classes(sample: DetDataSample) -> DetDataSample:
    """A copy of the sample with all labels 0, for the class-agnostic region proposal network."""
    stripped = DetDataSample(metainfo=sample.metainfo)
    truth = sample.gt_instances
    stripped.gt_instances = InstanceData(
        metainfo=truth.metainfo, bboxes=truth.bboxes, labels=torch.zeros_like(truth.labels)
    )
    if 'ignored_instances' in sample:
        stripped.ignored_instances = sample.ignored_instances
    return stripped
