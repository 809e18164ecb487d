"""How often the best boxes of a phrase show what the phrase says."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.evaluator import BaseMetric
from torch import Tensor

from ovd.datasets.annotations import check_option
from ovd.registry import METRICS
from ovd.text.nouns import NameMatcher
from ovd.text.vocabulary import Vocabulary

# Place of the first hit, chance of a random true box of the sample, whether the phrase is novel.
_Phrase = tuple[int | None, float, bool | None]


@METRICS.register_module()
class PhraseRecall(BaseMetric):
    """Recall@k of grounded phrases, averaged over phrases with at least one true box.

    Reads ``pred_instances`` (bboxes, scores, labels), ``gt_instances`` (bboxes, labels), both in the frame of
    the original image: load annotations after the last resize. Keys: ``phrase/recall@1`` ...,
    ``phrase/recall@all`` (any of a phrase's boxes) and ``phrase/any_object`` (what naming one of the sample's
    true boxes at random would score at 1); with a vocabulary also ``.../base`` and ``.../novel``. Fractions
    0..1, left out where there is no such phrase.

    Args:
        ks: how many of a phrase's best boxes count.
        boxes: 'any', a hit is one of the phrase's true boxes; 'merged', the box around all of them.
        iou_threshold: overlap from which a box is a hit.
        vocabulary: tells novel phrases, which hold the name of a novel class, from base ones; the samples'
            metainfo must have ``text`` and ``tokens_positive``.

    Source: Plummer et al., "Flickr30k Entities", ICCV 2015; both kinds of boxes: Kamath et al., "MDETR",
        ICCV 2021.
    """

    default_prefix = 'phrase'

    def __init__(
        self,
        ks: Sequence[int] = (1, 5, 10),
        boxes: str = 'any',
        iou_threshold: float = 0.5,
        vocabulary: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_option('boxes', boxes, ('any', 'merged'))
        if not ks or min(ks) < 1:
            raise ValueError(f'ks must be positive numbers, got {ks!r}')
        self.ks = tuple(ks)
        self.boxes = boxes
        self.iou_threshold = iou_threshold
        self._vocabulary = None if vocabulary is None else Vocabulary.parse(vocabulary)
        self._matcher = None if self._vocabulary is None else NameMatcher(self._vocabulary)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            found, truth = sample['pred_instances'], sample['gt_instances']
            order = found['scores'].argsort(descending=True, stable=True)
            boxes, labels = get_box_tensor(found['bboxes'])[order].cpu(), found['labels'][order].cpu()
            true_boxes, true_labels = get_box_tensor(truth['bboxes']).cpu(), truth['labels'].cpu()
            distinct = len(true_boxes.unique(dim=0))
            phrases: list[_Phrase] = []
            for label in true_labels.unique().tolist():
                own = true_boxes[true_labels == label]
                rank = first_hit(boxes[labels == label], own, self.iou_threshold, self.boxes == 'merged')
                share = len(own.unique(dim=0)) / distinct
                phrases.append((rank, share, self._is_novel(sample, label)))
            self.results.append(phrases)

    def compute_metrics(self, results: list[list[_Phrase]]) -> dict[str, float]:
        phrases = [phrase for sample in results for phrase in sample]
        groups = {'': phrases}
        if self._vocabulary is not None:
            groups['/base'] = [phrase for phrase in phrases if not phrase[2]]
            groups['/novel'] = [phrase for phrase in phrases if phrase[2]]
        metrics = {}
        for name, part in groups.items():
            if part:
                for k in self.ks:
                    hits = sum(rank is not None and rank < k for rank, _, _ in part)
                    metrics[f'recall@{k}{name}'] = hits / len(part)
                metrics[f'recall@all{name}'] = sum(rank is not None for rank, _, _ in part) / len(part)
                metrics[f'any_object{name}'] = sum(share for _, share, _ in part) / len(part)
        return metrics

    def _is_novel(self, sample: dict[str, Any], label: int) -> bool | None:
        if self._matcher is None or self._vocabulary is None:
            return None
        words = ' '.join(sample['text'][start:end] for start, end in sample['tokens_positive'][label])
        found = self._matcher.find(words)
        return any(noun.label is not None and self._vocabulary.is_novel[noun.label] for noun in found)


def first_hit(boxes: Tensor, truth: Tensor, iou_threshold: float, merged: bool) -> int | None:
    """Place of the first of the boxes [M, 4] that hits the true ones [G, 4], or None."""
    if merged:
        truth = torch.cat([truth[:, :2].amin(0), truth[:, 2:].amax(0)])[None]
    hits = (bbox_overlaps(boxes.to(truth), truth) >= iou_threshold).any(1).nonzero().flatten()
    return int(hits[0]) if len(hits) else None
