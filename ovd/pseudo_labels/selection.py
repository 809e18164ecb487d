"""What a teacher's boxes become: the phrases of captions that it is asked for, and which boxes are kept.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022, Sec. 3.3: the whole caption is the
    prompt, boxes above 0.5 are kept; open-mmlab/mmdetection: the format of the lines (ODVG), with a score for
    each box.
Reading order: CaptionTask, label_image, select.
"""

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
    """A caption with the phrases whose boxes are known, and those that the teacher is asked for.

    Attributes:
        known: regions as ODVG writes them; with scores where another teacher found their boxes.
        asked: character ranges of each phrase without boxes.
    """

    text: str
    known: tuple[dict[str, Any], ...]
    asked: tuple[Ranges, ...]


@dataclass(frozen=True)
class Selection:
    """What becomes a label.

    Args:
        score_thr: lowest score of a box.
        max_boxes: the best so many of each phrase; None keeps all.
        phrase_nms: overlap (IoU) from which a box gives way to a better one, or a true one, of a phrase with
            other words; None lets phrases share boxes.
    """

    score_thr: float = 0.5
    max_boxes: int | None = None
    phrase_nms: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.score_thr <= 1:
            raise ValueError(f'pseudo_labels.score_thr is {self.score_thr}, expected 0 to 1')
        if self.max_boxes is not None and self.max_boxes < 1:
            raise ValueError(f'pseudo_labels.max_boxes is {self.max_boxes}, expected at least 1')
        if self.phrase_nms is not None and not 0 < self.phrase_nms <= 1:
            raise ValueError(f'pseudo_labels.phrase_nms is {self.phrase_nms}, expected 0 to 1')


def grounding_task(info: Mapping[str, Any]) -> CaptionTask:
    """A caption of a ``GroundingDataset``: its boxes are known, its ignored phrases are asked for."""
    known = []
    for label, ranges in info['tokens_positive'].items():
        own = [entry for entry in info['instances'] if entry['bbox_label'] == label]
        scores = [entry['score'] for entry in own if 'score' in entry]
        known.append(_region(info['text'], ranges, [entry['bbox'] for entry in own], scores))
    asked = tuple([list(span)] for span in info.get('tokens_ignored') or ())
    return CaptionTask(info['text'], tuple(known), asked)


@torch.no_grad()
def label_image(
    model: OpenVocabularyModel,
    inputs: Tensor,
    sample: DetDataSample,
    tasks: Sequence[CaptionTask],
    selection: Selection,
) -> list[dict[str, Any]]:
    """Captions of one image with boxes, as ODVG's ``grounding``; captions without any box are left out.

    Args:
        model: a detector in eval mode that answers captions, see ``GLIP``.
        inputs: the preprocessed image [1, 3, H, W]; sample: its data sample.
    """
    questions = []
    for task in tasks:
        if task.asked:
            question = sample.new()
            question.set_metainfo({'text': task.text, 'tokens_positive': dict(enumerate(task.asked))})
            questions.append(question)
    answers = iter(model.predict(inputs, questions) if questions else ())
    lines = []
    for task in tasks:
        regions, left = list(task.known), []
        if task.asked:
            found = next(answers).pred_instances
            chosen = select(task, found.bboxes.cpu(), found.scores.cpu(), found.labels.cpu(), selection)
            for label, ranges in enumerate(task.asked):
                own = [(box, score) for place, box, score in chosen if place == label]
                if own:
                    boxes, scores = zip(*own)
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
    """(phrase, box, score) of what becomes a label, the best first.

    Args:
        boxes: [N, 4] xyxy in the original image; scores: [N]; labels: [N], places in ``task.asked``.
    """
    words = [_words(task.text, ranges) for ranges in task.asked]
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
    """A phrase without regard to capital letters."""
    return ' '.join(text[start:end] for start, end in ranges).casefold()


def _region(text: str, ranges: Ranges, boxes: list[list[float]], scores: list[float]) -> dict[str, Any]:
    parts = [text[start:end] for start, end in ranges]
    phrase = parts[0] if len(parts) == 1 else parts
    region: dict[str, Any] = {'phrase': phrase, 'tokens_positive': ranges, 'bbox': boxes}
    return region | {'score': scores} if scores else region
