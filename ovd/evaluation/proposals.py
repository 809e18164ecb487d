"""Recall of class-agnostic proposals, for base and novel classes."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from torch import Tensor

from ..registry import METRICS
from .reporting_metric import ReportingMetric


@METRICS.register_module()
class ProposalRecall(ReportingMetric):
    """Share of ground-truth boxes that one of the best proposals covers; classes are ignored.

    Reads ``pred_instances`` (bboxes, scores) and ``gt_instances`` (bboxes, labels), both in pixels of the
    original image: load annotations after the last resize. ``novel_classes`` of the metainfo determines which
    labels are novel. Keys: ``recall/all@16``, ``recall/base@16``, ``recall/novel@16``, in 0..1; absent if
    there is no such box.

    Args:
        proposal_nums: numbers of proposals per image, best first.
        iou_threshold: IoU from which a box is found; the recalls of several thresholds are averaged (AR).
        kwargs: see :class:`ReportingMetric`.
    """

    default_prefix = 'recall'

    def __init__(
        self,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_threshold: float | Sequence[float] = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.proposal_nums = tuple(proposal_nums)
        self.iou_thresholds = [iou_threshold] if isinstance(iou_threshold, float) else list(iou_threshold)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            proposals, truth = sample['pred_instances'], sample['gt_instances']
            order = proposals['scores'].argsort(descending=True, stable=True)
            overlaps = bbox_overlaps(
                get_box_tensor(truth['bboxes']).to(proposals['bboxes']), proposals['bboxes'][order]
            )
            first = torch.stack([_first_hit(overlaps >= threshold) for threshold in self.iou_thresholds], 1)
            self.results.append((first.tolist(), truth['labels'].tolist()))

    def compute_metrics(self, results: list[tuple[list[list[int]], list[int]]]) -> dict[str, float]:
        assert self.dataset_meta is not None
        first = torch.tensor([ranks for image, _ in results for ranks in image])
        labels = [label for _, per_image in results for label in per_image]
        classes = self.dataset_meta['classes']
        novel = set(self.dataset_meta.get('novel_classes', ()))
        is_novel = torch.tensor([classes[label] in novel for label in labels], dtype=torch.bool)
        metrics = {}
        for name, chosen in (('all', is_novel | ~is_novel), ('base', ~is_novel), ('novel', is_novel)):
            for number in self.proposal_nums:
                if chosen.any():
                    metrics[f'{name}@{number}'] = (first[chosen] < number).float().mean().item()
        protocol = {
            'evaluator': 'class-agnostic recall',
            'split': self.dataset_meta.get('split'),
            'images': len(results),
            'boxes_base': int((~is_novel).sum()),
            'boxes_novel': int(is_novel.sum()),
            'iou_thresholds': self.iou_thresholds,
        }
        self.publish(metrics, protocol)
        return metrics


def _first_hit(hits: Tensor) -> Tensor:
    """Column of the first True of each row of [T, M]; the largest integer if there is none. [T]"""
    ranks = torch.arange(hits.shape[1], device=hits.device).expand_as(hits)
    never = ranks.new_full((len(hits), 1), torch.iinfo(ranks.dtype).max)
    return torch.cat([ranks.where(hits, never), never], dim=1).amin(dim=1)
