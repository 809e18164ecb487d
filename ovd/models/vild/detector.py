"""ViLD: a two-stage detector whose classifier is text and whose teacher is CLIP.

Source: Gu et al., "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
ICLR 2022, Sec. 3; reference: tensorflow/tpu: models/official/detection/projects/vild; dyabel/detpro.
Reading order: ViLD (the flow of an image), ViLDRoIHead (regions, losses, predictions); the branches of the
four variants are in bbox_head.py.
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
from .online_encoder import RegionTeacher, rgb_images


@MODELS.register_module()
class ViLD(OpenVocabularyModel, TwoStageDetector):
    """Faster or Mask R-CNN, with any backbone, whose class scores come from words.

    Training reads ``data_sample.region_instances`` where the variant distils: boxes [R, 4] in the input
    frame, CLIP embeddings [R, D] of the same regions and ``valid`` [R]; ``LoadRegionEmbeddings`` puts them
    there.

    Args:
        text: where the class vectors come from, see ``TextSource``.
        teacher: arguments of ``RegionTeacher``; CLIP then embeds crops of the best proposals in every step,
            and no store of region embeddings is needed.
        clip: arguments of ``RegionTeacher``; at test time CLIP then embeds crops of the best proposals and
            its class probabilities take the image side of the ensemble. Slow: one CLIP pass per crop.
        **kwargs: of mmdet's TwoStageDetector.
    """

    answers = 'boxes'

    def __init__(
        self,
        *args: Any,
        text: Mapping[str, Any] | None = None,
        teacher: Mapping[str, Any] | None = None,
        clip: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, text=text, **kwargs)
        self.teacher = None if teacher is None else RegionTeacher(**teacher)
        self.clip = None if clip is None else RegionTeacher(**clip)

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        is_novel = torch.tensor(text_embeddings.vocabulary.is_novel)
        self.roi_head.bbox_head.set_text(text_embeddings.embeddings, is_novel)

    def describe(self) -> dict[str, Any]:
        """The words, and the rules that make boxes and scores."""
        head, rcnn = self.roi_head.bbox_head, self.test_cfg.rcnn
        return {
            **super().describe(),
            'mode': head.mode,
            **head.describe_scores(uses_clip=self.clip is not None),
            'objectness_power': self.roi_head.objectness_power,
            'score_threshold': rcnn.score_thr,
            'nms': dict(rcnn.nms),
            'max_per_image': rcnn.max_per_img,
        }

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of a batch: region proposals, boxes, masks, words, distillation."""
        self._check_labels(batch_data_samples)
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
        if self.teacher is not None and self.roi_head.bbox_head.distils:
            taught = self.teacher.regions(rgb_images(batch_inputs, self.data_preprocessor), proposals)
            for sample, regions in zip(batch_data_samples, taught):
                sample.region_instances = regions
        if self.roi_head.bbox_head.distils:
            self._check_teacher(batch_data_samples)
        losses.update(self.roi_head.loss(features, proposals, batch_data_samples))
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Detections of a batch; ``rescale`` puts them into the frame of the original images."""
        self.prepare_text()
        features = self.extract_feat(batch_inputs)
        if batch_data_samples[0].get('proposals', None) is None:
            proposals = self.rpn_head.predict(features, batch_data_samples, rescale=False)
        else:
            proposals = [sample.proposals for sample in batch_data_samples]
        if self.clip is not None:
            proposals = self.clip.annotate(rgb_images(batch_inputs, self.data_preprocessor), proposals)
        results = self.roi_head.predict(features, proposals, batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> tuple:
        self.prepare_text()
        return super()._forward(batch_inputs, batch_data_samples)

    def check_training_classes(self, metainfo: Mapping[str, Any]) -> None:
        """Refuse training data without boxes of a class that is not novel here.

        Its word would be in the softmax of every region and never be right.

        Args:
            metainfo: of the data set, with ``classes`` and ``base_classes``, those with boxes.
        """
        base = metainfo.get('base_classes')
        if base is None:
            return
        pairs = zip(metainfo['classes'], self.vocabulary.is_novel)
        without = [name for name, is_novel in pairs if not is_novel and name not in base]
        if without:
            raise ValueError(
                f'the split of the training data takes away the boxes of {len(without)} classes, such as '
                f'{without[0]!r}, which the vocabulary of the model does not mark as novel: their words '
                'would be trained as wrong answers. Mark them, as the built-in coco_ov80 does for 80 slots'
            )

    def _check_labels(self, batch_data_samples: Sequence[DetDataSample]) -> None:
        """Refuse boxes of novel classes in training: they would leak the answer into the evaluation."""
        vocabulary = self.text_embeddings.vocabulary
        labels = torch.cat([sample.gt_instances.labels for sample in batch_data_samples])
        if len(labels) and int(labels.max()) >= len(vocabulary):
            raise ValueError(
                f'a training box has label {int(labels.max())}, the vocabulary has {len(vocabulary)} '
                f'classes: data set and model must share one vocabulary'
            )
        leaked = labels[self.roi_head.bbox_head.is_novel[labels]]
        if len(leaked):
            names = ', '.join(repr(vocabulary.names[label]) for label in leaked.unique().tolist())
            raise ValueError(
                f'training boxes of novel classes {names}: the novel classes would leak into training'
            )

    def _check_teacher(self, batch_data_samples: Sequence[DetDataSample]) -> None:
        """Region embeddings must be there, and come from the CLIP of the class vectors."""
        known = self.text_embeddings.encoder_fingerprint
        for sample in batch_data_samples:
            if 'region_instances' not in sample:
                raise ValueError(
                    f'mode {self.roi_head.bbox_head.mode!r} distils, but the batch has no region embeddings: '
                    f"add dict(type='ovd.LoadRegionEmbeddings', store=...) before 'ovd.PackDetInputs', "
                    f'or give the model a `teacher`'
                )
            source = sample.region_instances.metainfo.get('encoder_fingerprint')
            check_same_encoder(source, known, 'the region embeddings')


@MODELS.register_module()
class ViLDRoIHead(StandardRoIHead):
    """Samples regions, pools their features and runs the branches of the box head on them.

    Args:
        distill_weight: w, weight of the distillation loss.
        joint_batch: run supervised and distilled regions through a shared trunk in one pass, so that batch
            normalisation sees both, as the TensorFlow code does; False normalises them separately, as DetPro.
        objectness_power: multiply class scores by RPN objectness to this power at test time; 0 leaves
            them alone.
        **kwargs: of mmdet's StandardRoIHead; the mask head must be class-agnostic.
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
            raise ValueError('the mask head must be class_agnostic=True: its classes would be a fixed list')

    def loss(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: list[InstanceData],
        batch_data_samples: list[DetDataSample],
    ) -> dict[str, Tensor]:
        """Losses of the sampled regions, and of the distilled ones in the variants that have them."""
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
        """Boxes, scores and labels per image; CLIP embeddings come in as ``clip_embeddings`` of the
        proposals."""
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
        self,
        x: tuple[Tensor, ...],
        proposals: list[InstanceData],
        batch_data_samples: list[DetDataSample],
    ) -> list[SamplingResult]:
        """Assign proposals to ground truth and draw the regions to train on."""
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
    """Join the valid regions of a batch; one marked invalid stands in when there is none.

    At least one region keeps every branch in the graph, which distributed training needs.
    """
    rois, embeddings = [], []
    for index, regions in enumerate(region_instances):
        boxes = regions.bboxes[regions.valid]
        rois.append(torch.cat([boxes.new_full((len(boxes), 1), index), boxes], dim=1))
        embeddings.append(regions.embeddings[regions.valid])
    joined = torch.cat(rois)
    with torch.autocast(joined.device.type, enabled=False):  # which cannot join float16 under bfloat16
        teacher = torch.cat(embeddings)
    if len(joined):
        return Regions(joined, teacher, torch.ones(len(joined), dtype=torch.bool, device=joined.device))
    joined = joined.new_tensor([[0.0, 0.0, 0.0, 8.0, 8.0]])
    return Regions(
        joined, teacher.new_zeros(1, teacher.shape[1]), torch.zeros(1, dtype=torch.bool, device=joined.device)
    )


def _without_classes(sample: DetDataSample) -> DetDataSample:
    """The same image and boxes under one class, for the class-agnostic region proposal network."""
    stripped = DetDataSample(metainfo=sample.metainfo)
    truth = sample.gt_instances
    stripped.gt_instances = InstanceData(
        metainfo=truth.metainfo, bboxes=truth.bboxes, labels=torch.zeros_like(truth.labels)
    )
    if 'ignored_instances' in sample:
        stripped.ignored_instances = sample.ignored_instances
    return stripped
