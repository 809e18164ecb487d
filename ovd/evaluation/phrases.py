"""How often the best boxes of a phrase show what the phrase says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.logging import MMLogger
from torch import Tensor

from ..options import check_option
from ..registry import METRICS
from ..text.nouns import NameMatcher
from ..text.vocabulary import Vocabulary
from .reporting_metric import ReportingMetric


@dataclass(frozen=True)
class PhraseResult:
    """How one phrase fared.

    Attributes:
        rank: place of the first of its boxes that hits, None if none does.
        chance: what naming one of the sample's true boxes at random would score.
        groups: what it is counted under beside the whole: base or novel, types.
    """

    rank: int | None
    chance: float
    groups: tuple[str, ...]


@METRICS.register_module()
class PhraseRecall(ReportingMetric):
    """Recall@k of grounded phrases, averaged over phrases with at least one true box.

    Reads ``pred_instances`` (bboxes, scores, labels), ``gt_instances`` (bboxes, labels), both in the frame of
    the original image: load annotations after the last resize. Keys: ``phrase/recall@1`` ...,
    ``phrase/recall@all`` (any of a phrase's boxes) and ``phrase/any_object`` (what naming one of the sample's
    true boxes at random would score at 1); with a vocabulary also ``.../base`` and ``.../novel``, and
    ``.../<type>`` where samples have the metainfo ``phrase_types`` (label -> type, or list of types).
    Fractions 0..1; groups without phrases are left out, and all is nan without any.

    Args:
        ks: how many of a phrase's best boxes count.
        boxes: 'any', a hit is one of the phrase's true boxes; 'merged', the box around all of them.
        iou_threshold: overlap from which a box is a hit.
        vocabulary: tells novel phrases, which hold the name of a novel class, from base ones; the samples'
            metainfo must have ``text`` and ``tokens_positive``.
        kwargs: see ``ReportingMetric``.

    Source: Plummer et al., "Flickr30k Entities", ICCV 2015; both kinds of boxes: Kamath et al., "MDETR",
        ICCV 2021.
    """

    default_prefix = 'phrase'
    measure = 'recall'
    with_chance = True

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

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        """Captions have no classes."""

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep how each phrase of each sample fared."""
        for sample in data_samples:
            found, truth = sample['pred_instances'], sample['gt_instances']
            order = found['scores'].argsort(descending=True, stable=True)
            boxes, labels = get_box_tensor(found['bboxes'])[order].cpu(), found['labels'][order].cpu()
            true_boxes, true_labels = get_box_tensor(truth['bboxes']).cpu(), truth['labels'].cpu()
            distinct = len(true_boxes.unique(dim=0))
            phrases = []
            for label in true_labels.unique().tolist():
                own = true_boxes[true_labels == label]
                rank = first_hit(boxes[labels == label], own, self.iou_threshold, self.boxes == 'merged')
                share = len(own.unique(dim=0)) / distinct
                phrases.append(PhraseResult(rank, share, self._groups(sample, label)))
            self.results.append(phrases)

    def compute_metrics(self, results: list[list[PhraseResult]]) -> dict[str, float]:
        phrases = [phrase for sample in results for phrase in sample]
        groups: dict[str, list[PhraseResult]] = {'': phrases}
        for name in sorted({name for phrase in phrases for name in phrase.groups}):
            groups[f'/{name}'] = [phrase for phrase in phrases if name in phrase.groups]
        metrics = {}
        for name, part in groups.items():
            count = len(part) or math.nan
            for k in self.ks:
                hits = sum(phrase.rank is not None and phrase.rank < k for phrase in part)
                metrics[f'{self.measure}@{k}{name}'] = hits / count
            metrics[f'{self.measure}@all{name}'] = sum(p.rank is not None for p in part) / count
            if self.with_chance:
                metrics[f'any_object{name}'] = sum(phrase.chance for phrase in part) / count
        line = '  '.join(f'{key} {100 * value:.1f}' for key, value in metrics.items())
        logger = MMLogger.get_current_instance()
        logger.info(f'{len(phrases)} phrases, {self.boxes} boxes: {line}')
        if not phrases:
            logger.warning(f'none of {len(results)} sentences has a phrase with a box: nothing to score')
        meta = self.dataset_meta or {}
        protocol = {
            'annotations': meta.get('ann_file'),
            'sentences': len(results),
            'phrases': len(phrases),
            'phrases_per_group': {name[1:]: len(part) for name, part in groups.items() if name},
            'boxes': self.boxes,
            'iou_threshold': self.iou_threshold,
            'best_boxes': list(self.ks),
            'vocabulary_hash': self._vocabulary.content_hash if self._vocabulary else None,
        }
        self.publish(metrics, protocol)
        return metrics

    def _groups(self, sample: Mapping[str, Any], label: int) -> tuple[str, ...]:
        types = (sample.get('phrase_types') or {}).get(label, ())
        groups = [types] if isinstance(types, str) else list(types)
        if self._vocabulary is not None:
            groups.append('novel' if self._is_novel(sample, label) else 'base')
        return tuple(groups)

    def _is_novel(self, sample: Mapping[str, Any], label: int) -> bool:
        assert self._matcher is not None
        assert self._vocabulary is not None
        words = ' '.join(sample['text'][start:end] for start, end in sample['tokens_positive'][label])
        found = self._matcher.find(words)
        return any(noun.label is not None and self._vocabulary.is_novel[noun.label] for noun in found)


@METRICS.register_module()
class ReferringPrecision(PhraseRecall):
    """Precision@k of referring expressions: ``referring/precision@1`` ..., as ``PhraseRecall`` otherwise.

    A sentence that means one object is right if one of its k best boxes is that object's.

    Source: Kazemzadeh et al., "ReferItGame", EMNLP 2014; k = 1, 5, 10: Kamath et al., "MDETR", ICCV 2021.
    """

    default_prefix = 'referring'
    measure = 'precision'
    with_chance = False  # a sentence has one true box


def first_hit(boxes: Tensor, truth: Tensor, iou_threshold: float, merged: bool) -> int | None:
    """Place of the first of the boxes [M, 4] that hits the true ones [G, 4], or None."""
    if merged:
        truth = torch.cat([truth[:, :2].amin(0), truth[:, 2:].amax(0)])[None]
    hits = (bbox_overlaps(boxes.to(truth), truth) >= iou_threshold).any(1).nonzero().flatten()
    return int(hits[0]) if len(hits) else None
