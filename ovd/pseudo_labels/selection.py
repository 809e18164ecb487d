"""Which boxes of the teacher become pseudo labels of the phrases of a caption.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022, Sec. 3.3: the whole caption is the
    prompt, boxes above 0.5 are kept; open-mmlab/mmdetection: the format of the lines (ODVG), with a score for
    each box.
Reading order: CaptionTask, label_image, select.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ..models.base import OpenVocabularyModel

Ranges = list[list[int]]


@dataclass(frozen=True)
class CaptionTask:
    """A caption: phrases with known boxes, and phrases to label.

    Attributes:
        known: regions in ODVG's format; with scores if they come from another teacher.
        to_label: character ranges of each phrase to label.
    """

    text: str
    known: tuple[dict[str, Any], ...]
    to_label: tuple[Ranges, ...]


@dataclass(frozen=True)
class Selection:
    """Rules that decide which boxes are kept.

    Args:
        score_thr: lowest score, in 0..1.
        max_boxes: largest number of boxes per phrase, best first; None keeps all.
        phrase_nms: IoU, in 0..1, from which a box is suppressed by a better box, or a known one, of a phrase
            with other words; None: no suppression between phrases.
    """

    score_thr: float = 0.5
    max_boxes: int | None = None
    phrase_nms: float | None = None

    def __post_init__(self) -> None:
        limits = {'score_thr': (0, 1), 'max_boxes': (1, math.inf), 'phrase_nms': (1e-6, 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f'pseudo_labels.{name} is {value}, expected {low} to {high}')


def grounding_task(info: Mapping[str, Any]) -> CaptionTask:
    """Task of a ``GroundingDataset`` caption: its boxes are known, its ignored phrases are to be labelled."""
    known = []
    for label, ranges in info['tokens_positive'].items():
        instances = [entry for entry in info['instances'] if entry['bbox_label'] == label]
        scores = [entry['score'] for entry in instances if 'score' in entry]
        known.append(_region(info['text'], ranges, [entry['bbox'] for entry in instances], scores))
    to_label = tuple([list(span)] for span in info.get('tokens_ignored') or ())
    return CaptionTask(info['text'], tuple(known), to_label)


@torch.no_grad()
def label_image(
    model: OpenVocabularyModel,
    inputs: Tensor,
    sample: DetDataSample,
    tasks: Sequence[CaptionTask],
    selection: Selection,
) -> list[dict[str, Any]]:
    """Label the captions of one image: ODVG's ``grounding`` entries; captions without boxes are skipped.

    Args:
        model: a detector in eval mode that accepts captions, see ``GLIP``.
        inputs: the preprocessed image [1, 3, H, W]; sample: its data sample.
    """
    questions = []
    for task in tasks:
        if task.to_label:
            question = sample.new()
            question.set_metainfo({'text': task.text, 'tokens_positive': dict(enumerate(task.to_label))})
            questions.append(question)
    answers = iter(model.predict(inputs, questions) if questions else ())
    lines = []
    for task in tasks:
        regions, left = list(task.known), []
        if task.to_label:
            found = next(answers).pred_instances
            chosen = select(task, found.bboxes.cpu(), found.scores.cpu(), found.labels.cpu(), selection)
            for label, ranges in enumerate(task.to_label):
                kept = [(box, score) for index, box, score in chosen if index == label]
                if kept:
                    boxes, scores = zip(*kept)
                    regions.append(_region(task.text, ranges, list(boxes), list(scores)))
                else:
                    left += ranges
        if regions:
            line = {'caption': task.text, 'regions': regions}
            lines.append(line | {'tokens_ignored': left} if left else line)
    return lines


def select(
    task: CaptionTask, boxes: Tensor, scores: Tensor, labels: Tensor, selection: Selection
) -> list[tuple[int, list[float], float]]:
    """Choose pseudo labels: (index of the phrase, box, score), best first.

    Args:
        boxes: [N, 4] xyxy in the original image.
        scores: [N].
        labels: [N], indices into ``task.to_label``.
    """
    words = [_words(task.text, ranges) for ranges in task.to_label]
    kept = [
        (_words(task.text, region['tokens_positive']), box) for region in task.known for box in region['bbox']
    ]
    counts: Counter[int] = Counter()
    chosen = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        label, score = int(labels[index]), float(scores[index])
        if score < selection.score_thr or counts[label] == selection.max_boxes:
            continue
        box = [round(number, 2) for number in boxes[index].tolist()]
        others = [other for name, other in kept if name != words[label]]
        if selection.phrase_nms is not None and others:
            overlap = bbox_overlaps(torch.tensor([box]), torch.tensor(others, dtype=torch.float32)).max()
            if overlap >= selection.phrase_nms:
                continue
        counts[label] += 1
        kept.append((words[label], box))
        chosen.append((label, box, round(score, 4)))
    return chosen


def _words(text: str, ranges: Ranges) -> str:
    """The words of a phrase, case-folded."""
    return ' '.join(text[start:end] for start, end in ranges).casefold()


def _region(text: str, ranges: Ranges, boxes: list[list[float]], scores: list[float]) -> dict[str, Any]:
    parts = [text[start:end] for start, end in ranges]
    phrase = parts[0] if len(parts) == 1 else parts
    region: dict[str, Any] = {'phrase': phrase, 'tokens_positive': ranges, 'bbox': boxes}
    return region | {'score': scores} if scores else region
