"""What a predictor finds on one image: instances, phrases of a sentence, or a word for every pixel."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .draw import RGB, draw_instances, draw_segmentation, font_size, name_colors
from .draw_caption import Mark, draw_caption

AnyPrediction = TypeVar('AnyPrediction', bound='Prediction')


@dataclass(frozen=True)
class Prediction:
    """What was found on one image, best score first.

    Attributes:
        boxes: [N, 4] float32, xyxy in pixels of the original image.
        scores: [N] float32.
        labels: [N] int64, the place of each name in the vocabulary.
        names: N of the user's own words.
        masks: bool [N, H, W], or None when the model has no mask head.
        size: (H, W) of the original image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    masks: np.ndarray | None
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def select(
        self: AnyPrediction, score_threshold: float = 0.0, max_per_image: int | None = None
    ) -> AnyPrediction:
        """Keep the best ``max_per_image`` of the instances with at least ``score_threshold``."""
        keep = np.argsort(-self.scores, kind='stable')
        keep = keep[self.scores[keep] >= score_threshold][:max_per_image]
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            names=tuple(self.names[index] for index in keep),
            masks=None if self.masks is None else self.masks[keep],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; masks as COCO run lengths, which pycocotools decodes."""
        instances = [
            {'name': name, 'label': int(label), 'score': float(score), 'box': [float(value) for value in box]}
            for name, label, score, box in zip(self.names, self.labels, self.scores, self.boxes)
        ]
        if self.masks is not None:
            for instance, mask in zip(instances, self.masks):
                instance['mask'] = _run_lengths(mask)
        return {'height': self.size[0], 'width': self.size[1], 'instances': instances}

    def draw(
        self,
        image: np.ndarray,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> np.ndarray:
        """Draw the instances on their image (uint8 [H, W, 3], RGB); see ``draw_instances``."""
        _check_size(image, self.size)
        return draw_instances(image, self.boxes, self.names, self.scores, self.masks, colors, font=font)


class Phrase(NamedTuple):
    """What a sentence names.

    Attributes:
        text: the user's own words.
        spans: their characters [start, end) of the sentence; several where the phrase is interrupted.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Grounding(Prediction):
    """Where the phrases of a sentence are on one image; labels are places in ``phrases``.

    Attributes:
        caption: the sentence.
        phrases: all that were looked for, found or not.
    """

    caption: str
    phrases: tuple[Phrase, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """A name for each phrase that no other has: equal ones are numbered, 'star (1)', 'star (2)'."""
        total, seen = Counter(phrase.text for phrase in self.phrases), Counter[str]()
        shown = []
        for text, _ in self.phrases:
            seen[text] += 1
            shown.append(text if total[text] == 1 else f'{text} ({seen[text]})')
        return tuple(shown)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: the sentence, its phrases in order, the instances."""
        phrases = [
            {'phrase': text, 'tokens_positive': [list(span) for span in spans]}
            for text, spans in self.phrases
        ]
        return {'caption': self.caption, 'phrases': phrases} | super().to_dict()

    def draw(
        self,
        image: np.ndarray,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> np.ndarray:
        """Draw the instances on their image, with the sentence below; see ``draw_caption``.

        Args:
            image: uint8 [H, W, 3], RGB.
            colors: of the names in ``shown``, by default ``name_colors`` of these.
        """
        _check_size(image, self.size)
        shown = self.shown
        colors = name_colors(shown) if colors is None else colors
        names = [shown[label] for label in self.labels]
        picture = draw_instances(image, self.boxes, names, self.scores, self.masks, colors, font=font)
        marks = [
            Mark(start, end, colors[name])
            for name, phrase in zip(shown, self.phrases)
            for start, end in phrase.spans
        ]
        height, width = picture.shape[:2]
        panel = draw_caption(self.caption, marks, width, font_size((width, height)), font)
        return np.concatenate([picture, panel])


@dataclass(frozen=True)
class Segmentation:
    """A word for every pixel of one image.

    Attributes:
        labels: [H, W] int64: the place of a word in the vocabulary, ``background``, or -1 for no answer.
        vocabulary: the K words that were asked for, as the user wrote them.
        background: the label of what no word describes: K where the model has a background of its own, the
            place of the word that the list gives it (see ``find_background``), or None.
    """

    labels: np.ndarray
    vocabulary: tuple[str, ...]
    background: int | None = None

    def __len__(self) -> int:
        """Number of words on the image; background is none of them."""
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the original image."""
        height, width = self.labels.shape
        return height, width

    @property
    def names(self) -> tuple[str, ...]:
        """The words on the image, the largest first."""
        return tuple(self.vocabulary[label] for label in self._areas() if label != self.background)

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of each word on the image, the largest first; background is left out."""
        found = self._areas().items()
        return {self.vocabulary[label]: area for label, area in found if label != self.background}

    @property
    def background_area(self) -> int:
        """Pixels of background."""
        return 0 if self.background is None else self._areas().get(self.background, 0)

    @property
    def background_name(self) -> str | None:
        """The user's word for background, else 'background'; None where there is none."""
        if self.background is None:
            return None
        return (*self.vocabulary, 'background')[self.background]

    def mask(self, name: str) -> np.ndarray:
        """Pixels of a word, bool [H, W].

        Raises:
            KeyError: a word that was not asked for.
        """
        if name not in self.vocabulary:
            raise KeyError(f'{name!r} was not asked for; the words are {", ".join(self.vocabulary)}')
        mask: np.ndarray = self.labels == self.vocabulary.index(name)
        return mask

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: each label on the image with its pixels as COCO run lengths."""
        names = (*self.vocabulary, 'background')
        segments = [
            {
                'name': names[label],
                'label': label,
                'is_background': label == self.background,
                'area': area,
                'mask': _run_lengths(self.labels == label),
            }
            for label, area in self._areas().items()
        ]
        height, width = self.size
        return {'height': height, 'width': width, 'background': self.background, 'segments': segments}

    def draw(
        self,
        image: np.ndarray,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
        show_background: bool = False,
    ) -> np.ndarray:
        """Draw the words on their image (uint8 [H, W, 3], RGB); see ``draw_segmentation``."""
        _check_size(image, self.size)
        return draw_segmentation(
            image,
            self.labels,
            self.vocabulary,
            colors,
            background=self.background,
            show_background=show_background,
            font=font,
        )

    def _areas(self) -> dict[int, int]:
        """Pixels of each label on the image, the largest first, of equal ones the lowest."""
        labels, areas = np.unique(self.labels[self.labels >= 0], return_counts=True)
        order = np.argsort(-areas, kind='stable')
        return {int(labels[index]): int(areas[index]) for index in order}


BACKGROUND_WORDS = ('background', 'other', 'others')


def find_background(names: tuple[str, ...]) -> int | None:
    """The place of the word that stands for background: 'background', else 'other' or 'others', else None."""
    lowered = [name.lower() for name in names]
    return next((lowered.index(word) for word in BACKGROUND_WORDS if word in lowered), None)


def _check_size(image: np.ndarray, size: tuple[int, int]) -> None:
    if image.shape[:2] != size:
        raise ValueError(f'this prediction is for an image of {size}, got one of {image.shape[:2]}')


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a bool mask [H, W]."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode('ascii')}
