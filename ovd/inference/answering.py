"""From scores to answers: rivals, one name per object, thresholds, presence, notices.

A softmax over the asked words alone finds whatever is asked. So a question also holds *rivals*: words that
compete but are not shown. An object has one name, the best one of words and rivals; the others stay as
runners-up. What is shown scores at least a threshold that was found on validation data.
Reading order: AnswerOptions, choose_rivals, question_vocabulary, resolve_instances, resolve_pixels, notices.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..encoders.knowledge import Knowledge
from ..encoders.sources import resolve_built_in
from ..files import write_json
from ..text.vocabulary import Vocabulary
from .predictions import Prediction, Segmentation

FILE_NAME = 'answering.json'
_CONTRASTS = Path(__file__).resolve().parents[1] / 'assets' / 'contrasts.json'
_RUNNERS_UP = 3


@dataclass(frozen=True)
class AnswerOptions:
    """How scores become answers; stored beside the weights as ``answering.json``.

    Attributes:
        threshold: lowest score that is shown.
        word_thresholds: thresholds of single words, where validation data has enough of them.
        rivals: words that compete but are not shown; None: the words of the model's config.
        contrasts: also let 'red star' compete with 'green star', 'blue star' and so on.
        overlap: IoU from which two boxes are one object, which has one name.
        min_area: share of the image that a word's largest patch of pixels must have, for segmentors.
        verifier: a CLIP that looks at the crop of each candidate box: a name or folder as for ``load_clip``;
            'auto': the one that encodes the words, where it is in a folder on this disk; None: no CLIP.
        verifier_weight: exponent of the CLIP's probability; the model's score has the rest.
        knowledge: what the encoder was trained on, None where it is a general one.
        fitted_on: the validation data that the thresholds come from, for the protocol.
    """

    threshold: float = 0.3
    word_thresholds: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[str, ...] | None = None
    contrasts: bool = True
    overlap: float = 0.6
    min_area: float = 0.0
    verifier: str | None = 'auto'
    verifier_weight: float = 0.5
    knowledge: Knowledge | None = None
    fitted_on: str = ''

    @property
    def floor(self) -> float:
        """The lowest of the thresholds."""
        return min(self.threshold, *self.word_thresholds.values(), self.threshold)

    def with_threshold(self, threshold: float | Mapping[str, float] | None) -> 'AnswerOptions':
        """The same options with what a user asked for: one threshold for all words, or some words' own.

        Raises:
            ValueError: a threshold that is no number from 0 to 1.
        """
        if threshold is None:
            return self
        if not isinstance(threshold, Mapping):
            return replace(self, threshold=check_threshold(threshold), word_thresholds={})
        own = {name: check_threshold(value, f'threshold of {name!r}') for name, value in threshold.items()}
        return replace(self, word_thresholds={**self.word_thresholds, **own})

    def threshold_of(self, name: str) -> float:
        """The lowest score at which a word is shown."""
        return self.word_thresholds.get(name, self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which ``from_dict`` reads."""
        return {
            'threshold': self.threshold,
            'word_thresholds': dict(self.word_thresholds),
            'rivals': None if self.rivals is None else list(self.rivals),
            'contrasts': self.contrasts,
            'overlap': self.overlap,
            'min_area': self.min_area,
            'verifier': self.verifier,
            'verifier_weight': self.verifier_weight,
            'knowledge': None if self.knowledge is None else self.knowledge.to_dict(),
            'fitted_on': self.fitted_on,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = FILE_NAME) -> 'AnswerOptions':
        """Read what ``to_dict`` gives.

        Raises:
            ValueError: unknown fields, or a threshold outside 0 .. 1; the message names ``source``.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f'{source}: unknown fields {sorted(unknown)}')
        options = dict(values)
        if options.get('rivals') is not None:
            options['rivals'] = tuple(options['rivals'])
        if options.get('knowledge') is not None:
            options['knowledge'] = Knowledge.from_dict(options['knowledge'], source)
        made = cls(**options)
        for name, value in {'threshold': made.threshold, **made.word_thresholds}.items():
            check_threshold(value, f'{source}: {name}')
        return made

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``answering.json`` into the folder of the weights."""
        path = Path(folder) / FILE_NAME
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'AnswerOptions | None':
        """The options stored in a folder, or None where there are none."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text(encoding='utf-8')), str(path))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f'{path} cannot be read: {error}') from None


def find_options(config: Mapping[str, Any], checkpoint: str | os.PathLike[str] | None) -> AnswerOptions:
    """The options stored beside the weights, else defaults with what the config's text encoder knows."""
    stored = None if checkpoint is None else AnswerOptions.load(Path(checkpoint).parent)
    if stored is not None and stored.knowledge is not None:
        return stored
    encoder = (config.get('model', {}).get('text') or {}).get('encoder') or {}
    knowledge = Knowledge.load(resolve_built_in(encoder.get('model') or ''))
    return replace(stored or AnswerOptions(), knowledge=knowledge)


def check_threshold(value: Any, what: str = 'score_threshold') -> float:
    """A score threshold: a number from 0 to 1.

    Raises:
        ValueError: anything else, NaN included; the message starts with ``what``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 <= value <= 1:
        raise ValueError(f'{what} is {value!r}, expected a number from 0 to 1')
    return float(value)


def choose_rivals(
    asked: Vocabulary, known: Sequence[str] | Sequence[Sequence[str]], contrasts: bool = True
) -> tuple[str, ...]:
    """Words that compete with the asked ones.

    Args:
        asked: the question.
        known: candidates, each a name or a list of synonyms whose first entry is the name.
        contrasts: add, for each asked name with a colour, pattern or material, the same name with the others.
    Returns:
        candidates that could not name the same thing as an asked word: a rival is left out where its words
        are part of an asked name's or the other way round ('star' and 'red star').
    """
    taken = {frozenset(_words(text)) for group in asked.synonyms for text in group}
    rivals: dict[str, None] = {}
    for entry in known:
        synonyms = (entry,) if isinstance(entry, str) else tuple(entry)
        sets = [frozenset(_words(text)) for text in synonyms]
        if not any(one <= other or other <= one for one in sets for other in taken):
            rivals[synonyms[0]] = None
    if contrasts:
        for name in asked.names:
            for other in contrasting_names(name):
                if frozenset(_words(other)) not in taken:
                    rivals[other] = None
    return tuple(rivals)


def contrasting_names(name: str) -> list[str]:
    """The same name with another colour, pattern or material: 'green star', ... for 'red star'."""
    words = name.split()
    found = []
    for group in _contrasts():
        for index, word in enumerate(words[:-1]):
            if word.lower() in group:
                found += [
                    ' '.join([*words[:index], other, *words[index + 1 :]])
                    for other in group
                    if other != word.lower()
                ]
    return found


@cache
def _contrasts() -> tuple[tuple[str, ...], ...]:
    content = json.loads(_CONTRASTS.read_text(encoding='utf-8'))
    return tuple(tuple(group) for group in content.values())


def question_vocabulary(asked: Vocabulary, rivals: Sequence[str], known: Vocabulary | None) -> Vocabulary:
    """The asked words, then the rivals, as one vocabulary.

    A word is novel unless the model's own vocabulary ``known`` holds it as a base class: models that trust
    another head for novel classes then treat it as they do in evaluation.
    """
    names = (*asked.names, *rivals)
    base = set() if known is None else set(known.base_names)
    has_split = known is not None and any(known.is_novel)
    novel = [name for name in names if name not in base] if has_split else asked.novel_names
    synonyms = dict(zip(asked.names, asked.synonyms))
    descriptions = dict(zip(asked.names, asked.descriptions))
    shown = set(asked.labels)
    labels = [*asked.labels, *(name if name not in shown else f'{name} (rival)' for name in rivals)]
    return Vocabulary(names, novel=novel, synonyms=synonyms, descriptions=descriptions, labels=labels)


def resolve_instances(found: Prediction, names: Sequence[str], options: AnswerOptions) -> Prediction:
    """One name per object, without rivals and low scores.

    Args:
        found: instances of the asked names, labels 0 .. K - 1, and of rivals, labels from K on.
        names: K asked names.
        options: see ``AnswerOptions``.
    Returns:
        what is shown, with ``presence``, ``runners_up`` and ``seen_instead``.
    """
    order = np.argsort(-found.scores, kind='stable')
    kept: list[int] = []
    others: dict[int, dict[str, float]] = {}
    overlaps = box_ious(found.boxes)
    for index in order:
        same = [
            one
            for one in kept
            if overlaps[one, index] >= options.overlap
            # equal phrases of a sentence may both be true of an object
            and (found.names[one] != found.names[index] or found.labels[one] == found.labels[index])
        ]
        if not same:
            kept.append(int(index))
            others[int(index)] = {}
            continue
        best = max(same, key=lambda one: overlaps[one, index])
        name = found.names[index]
        if name != found.names[best] and name not in others[best]:
            others[best][name] = float(found.scores[index])
    presence = dict.fromkeys(names, 0.0)
    instead: dict[str, float] = {}
    shown = []
    for index in kept:
        name, score = found.names[index], float(found.scores[index])
        if found.labels[index] >= len(names):
            if score >= options.threshold:
                instead.setdefault(name, score)
            continue
        presence[name] = max(presence[name], score)
        if score >= options.threshold_of(name):
            shown.append(index)
    keep = np.array(shown, dtype=np.int64)
    return replace(
        found,
        boxes=found.boxes[keep],
        scores=found.scores[keep],
        labels=found.labels[keep],
        names=tuple(found.names[index] for index in shown),
        masks=None if found.masks is None else found.masks[keep],
        presence=presence,
        runners_up=tuple(tuple(others[index].items())[:_RUNNERS_UP] for index in shown),
        seen_instead=tuple(instead.items()),
    )


def resolve_pixels(found: Segmentation, count: int, options: AnswerOptions) -> Segmentation:
    """Pixels of the asked words; those of rivals and of patches that are too small become background.

    Args:
        found: labels 0 .. K - 1 of asked words, from K on of rivals, then background if the model has one.
        count: K.
        options: see ``AnswerOptions``.
    """
    total = len(found.vocabulary)
    own = found.background is not None and found.background >= count
    nothing = count if own else -1
    labels = np.where(found.labels >= count, nothing, found.labels)
    presence = {}
    for label, name in enumerate(found.vocabulary[:count]):
        presence[name] = _largest_patch(found.labels == label)
        if presence[name] < options.min_area and label != found.background:
            labels[found.labels == label] = nothing
    instead = {
        found.vocabulary[label]: share
        for label in np.unique(found.labels[(found.labels >= count) & (found.labels < total)])
        if (share := _largest_patch(found.labels == label)) >= options.min_area and label != found.background
    }
    return replace(
        found,
        labels=labels,
        vocabulary=found.vocabulary[:count],
        background=count if own else found.background,
        presence=presence,
        seen_instead=tuple(sorted(instead.items(), key=lambda item: -item[1])),
    )


def _largest_patch(mask: np.ndarray) -> float:
    """Share of the image [H, W] that the largest 4-connected patch of a mask covers."""
    if not mask.any():
        return 0.0
    sizes = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)[2][1:, cv2.CC_STAT_AREA]
    return float(sizes.max() / mask.size)


def picture_notices(options: AnswerOptions, picture: np.ndarray) -> tuple[str, ...]:
    """Whether a picture (RGB, uint8 [H, W, 3]) is unlike what the encoder was trained on."""
    knowledge = options.knowledge
    if knowledge is None or not knowledge.is_foreign(picture):
        return ()
    return (
        f'this model was trained on {knowledge.images} only and this picture is unlike them: '
        'its answers cannot be trusted here',
    )


def word_notices(names: Sequence[str], options: AnswerOptions, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Which of the asked words the encoder has never met, and which similar ones it has.

    Args:
        names: the asked words.
        options: with what the encoder was trained on.
        vocabulary: words that the model knows well, offered in place of unknown ones.
    """
    knowledge = options.knowledge
    if knowledge is None:
        return ()
    found = []
    for name, unknown in knowledge.unknown_words(names).items():
        near = [word for part in unknown for word in knowledge.nearest_words(part)] or list(vocabulary[:8])
        offer = f'; known words: {", ".join(near)}' if near else ''
        quoted = ', '.join(repr(word) for word in unknown)
        found.append(f'{name!r}: this model was trained on {knowledge.images} and never met {quoted}{offer}')
    return tuple(found)


def box_ious(boxes: np.ndarray) -> np.ndarray:
    """IoU of all pairs of boxes [N, 4], float [N, N]."""
    boxes = boxes.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=-1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1)
    union = areas[:, None] + areas[None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _words(text: str) -> list[str]:
    """Lower-case words of a name, without the plural's s."""
    words = re.findall(r'[^\W_]+', text.lower())
    return [
        word[:-1] if len(word) > 3 and word.endswith('s') and not word.endswith('ss') else word
        for word in words
    ]
