"""Find the threshold at which the answers of a model are mostly right, on validation data.

Reading order: fit_answers, judge (one picture), best_threshold.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .answering import AnswerOptions
from .predictions import Prediction, Segmentation
from .predictor import Predictor

IOU = 0.5  # from which a box is right, as in AP50


class Judged(NamedTuple):
    """An answer before the threshold: its name, its score, and whether an object of that name is there."""

    name: str
    score: float
    is_right: bool


def fit_answers(
    predictor: Predictor,
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    precision: float = 0.9,
    min_objects: int = 100,
    max_images: int | None = None,
) -> AnswerOptions:
    """Choose thresholds such that about ``precision`` of what is shown is right.

    All classes of the annotations are asked at once, so that they are rivals of each other. Classes that the
    model marks as novel take no part, since no validation boxes of them may be known. Segmentors get the
    smallest share of the image that a word's largest patch must cover.

    Args:
        predictor: the model with its present options.
        annotations: COCO instances file of validation images.
        images: the folder of its images.
        precision: share of the shown answers that should be right.
        min_objects: a word with at least so many objects gets a threshold of its own.
        max_images: use the first so many images only.
    Returns:
        the predictor's options with new thresholds.
    Raises:
        ValueError: no object of a class in the annotations that may be used.
    """
    content = json.loads(Path(annotations).read_text(encoding='utf-8-sig'))
    names = {category['id']: category['name'] for category in content['categories']}
    words = list(dict.fromkeys(names.values()))
    base = set(words) - set(predictor.vocabulary.novel_names)
    truth: dict[int, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for annotation in content['annotations']:
        name = names[annotation['category_id']]
        if name in base and not annotation.get('iscrowd'):
            x, y, width, height = annotation['bbox']
            truth[annotation['image_id']].append((name, np.array([x, y, x + width, y + height])))
    if not truth:
        raise ValueError(f'{annotations} has no box of {", ".join(sorted(base)[:5])}')
    judged: list[Judged] = []
    counts: dict[str, int] = defaultdict(int)
    for image in content['images'][:max_images]:
        objects = truth.get(image['id'], [])
        for name, _ in objects:
            counts[name] += 1
        picture = Path(images) / image['file_name']
        if predictor.is_segmentor:
            (maps,) = predictor.predict(picture, words)
            answers = judge_presence(maps, {name for name, _ in objects})
        else:
            (found,) = predictor.predict(picture, words, score_threshold=0.0)
            answers = judge(found, objects)
        judged += [answer for answer in answers if answer.name in base]
    if predictor.is_segmentor:
        there = sum(len({name for name, _ in objects}) for objects in truth.values())
        share = best_threshold(judged, there, precision)
        fitted_on = f'{Path(annotations).name}, {there} words on pictures, precision {precision}'
        return replace(predictor.options, min_area=share, fitted_on=fitted_on)
    threshold = best_threshold(judged, sum(counts.values()), precision)
    own = {
        name: best_threshold([answer for answer in judged if answer.name == name], count, precision)
        for name, count in sorted(counts.items())
        if count >= min_objects
    }
    return replace(
        predictor.options,
        threshold=threshold,
        word_thresholds=own,
        fitted_on=f'{Path(annotations).name}, {sum(counts.values())} objects, precision {precision}',
    )


def judge(found: Prediction, objects: Sequence[tuple[str, np.ndarray]]) -> list[Judged]:
    """Compare the answers on one picture with its objects, best score first; each object counts once.

    Args:
        found: answers at threshold 0.
        objects: (name, box xyxy [4]) of the picture.
    """
    taken: set[int] = set()
    judged = []
    for index in np.argsort(-found.scores, kind='stable'):
        name = found.names[index]
        overlaps = [
            (_iou(found.boxes[index], box), number)
            for number, (other, box) in enumerate(objects)
            if other == name and number not in taken
        ]
        best, number = max(overlaps, default=(0.0, -1))
        if best >= IOU:
            taken.add(number)
        judged.append(Judged(name, float(found.scores[index]), best >= IOU))
    return judged


def judge_presence(found: Segmentation, names: set[str]) -> list[Judged]:
    """Compare the words on a picture, with the shares of their largest patches, with those that are there."""
    return [Judged(name, share, name in names) for name, share in found.presence.items() if share > 0]


def best_threshold(judged: Iterable[Judged], count: int, precision: float) -> float:
    """The lowest threshold from which on the answers reach a precision.

    Args:
        judged: answers with their scores.
        count: objects that could be found.
        precision: wanted; where no threshold reaches it, the one with the best F1 is taken.
    """
    ordered = sorted(judged, key=lambda answer: -answer.score)
    if not ordered:
        return 1.0
    scores = np.array([answer.score for answer in ordered])
    right = np.cumsum([answer.is_right for answer in ordered])
    precisions, recalls = right / np.arange(1, len(ordered) + 1), right / max(1, count)
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # one row per distinct score
    reached = last[precisions[last] >= precision]
    if len(reached):
        best = reached[-1]
    else:
        f1 = 2 * precisions * recalls / np.maximum(precisions + recalls, 1e-9)
        best = last[np.argmax(f1[last])]
    return float(np.floor(scores[best] * 1e4) / 1e4)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    inter = float(np.clip(high - low, 0, None).prod())
    union = float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - inter
    return inter / union if union > 0 else 0.0
