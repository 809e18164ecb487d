"""What an image-text encoder was trained on, so that a model can say when a question leaves it.

Large CLIPs know most words and pictures and carry no such record. A small one carries ``knowledge.json`` in
its folder: a description of its training pictures, the words of its captions, and the distribution of a few
statistics of its pictures.
Reading order: Knowledge, image_statistics.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILE_NAME = 'knowledge.json'
_SIDE = 96  # pixels of the shorter side that statistics are computed at
_FUNCTION_WORDS = frozenset(
    (
        'a',
        'an',
        'the',
        'of',
        'on',
        'in',
        'at',
        'by',
        'with',
        'and',
        'or',
        'to',
        'is',
        'are',
        'near',
        'over',
        'under',
    )
)


@dataclass(frozen=True)
class Knowledge:
    """What an encoder was trained on.

    Attributes:
        images: what its training pictures are, such as 'drawings of OV-Shapes'.
        words: the lower-case words of its captions.
        mean: [S] mean of ``image_statistics`` over its training pictures.
        precision: [S, S] inverse of their covariance.
        max_distance: Mahalanobis distance that nearly all training pictures keep.
    """

    images: str
    words: frozenset[str]
    mean: np.ndarray
    precision: np.ndarray
    max_distance: float

    @classmethod
    def fit(
        cls, images: str, captions: Iterable[str], pictures: Iterable[np.ndarray], share: float = 0.995
    ) -> 'Knowledge':
        """Describe a training set.

        Args:
            images: what the pictures are, for messages.
            captions: texts the encoder was trained on.
            pictures: RGB, uint8 [H, W, 3]; a few hundred are enough.
            share: of the pictures that are within ``max_distance``.
        """
        statistics = np.stack([image_statistics(picture) for picture in pictures])
        mean = statistics.mean(axis=0)
        precision = np.linalg.inv(np.cov(statistics.T) + 1e-6 * np.eye(len(mean)))
        words = frozenset(word for caption in captions for word in _words(caption))
        known = cls(images, words, mean, precision, float('inf'))
        distances = [known._distance(row) for row in statistics]
        return cls(images, words, mean, precision, float(np.quantile(distances, share)))

    def is_foreign(self, picture: np.ndarray) -> bool:
        """Whether a picture (RGB, uint8 [H, W, 3]) is unlike the training pictures."""
        return self._distance(image_statistics(picture)) > self.max_distance

    def unknown_words(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The words of each name that no training caption had; names without such words are left out."""
        found = {name: tuple(w for w in _words(name) if not self._knows(w)) for name in names}
        return {name: words for name, words in found.items() if words}

    def nearest_words(self, word: str, count: int = 3) -> tuple[str, ...]:
        """Known words of similar spelling, best first; none where nothing is similar."""
        return tuple(difflib.get_close_matches(word.lower(), sorted(self.words), n=count, cutoff=0.6))

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which ``from_dict`` reads."""
        return {
            'images': self.images,
            'words': sorted(self.words),
            'mean': [round(float(value), 5) for value in self.mean],
            'precision': [[round(float(value), 5) for value in row] for row in self.precision],
            'max_distance': round(self.max_distance, 4),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = 'knowledge') -> 'Knowledge':
        """Read what ``to_dict`` gives.

        Raises:
            ValueError: a missing or malformed field; the message names ``source``.
        """
        try:
            mean = np.asarray(values['mean'], dtype=float)
            precision = np.asarray(values['precision'], dtype=float).reshape(len(mean), len(mean))
            words = frozenset(str(word) for word in values['words'])
            return cls(str(values['images']), words, mean, precision, float(values['max_distance']))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{source} is no description of training data: {error}') from None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Knowledge | None':
        """The record in an encoder's folder, or None where there is none."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text(encoding='utf-8')), str(path))
        except json.JSONDecodeError as error:
            raise ValueError(f'{path} is no valid JSON: {error}') from None

    def _knows(self, word: str) -> bool:
        """Whether a word or its singular or plural was in a caption."""
        return bool(
            {word, f'{word}s', f'{word}es', word.removesuffix('s'), word.removesuffix('es')} & self.words
        )

    def _distance(self, statistics: np.ndarray) -> float:
        offset = statistics - self.mean
        return float(np.sqrt(max(0.0, offset @ self.precision @ offset)))


def image_statistics(picture: np.ndarray) -> np.ndarray:
    """Nine numbers that tell drawings on plain grounds from photographs, float64 [9].

    At 96 pixels on the shorter side: entropy of 512 colours, mean gradient, standard deviation of the
    brightness, 95 % quantile of the saturation; log distances from the median colour: their median, 75 %
    quantile, and median on the border; log 60 % quantile of the horizontal gradient; brightness of the median
    colour.
    """
    image = Image.fromarray(picture)
    scale = _SIDE / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX)).astype(np.int64)
    codes = (pixels // 32) @ np.array([64, 8, 1])
    shares = np.bincount(codes.ravel(), minlength=512) / codes.size
    shares = shares[shares > 0]
    gradient = np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()
    brightness = pixels.mean(axis=-1)
    saturation = pixels.max(axis=-1) - pixels.min(axis=-1)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    distance = np.abs(pixels - ground).max(axis=-1)
    border = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    return np.array(
        [
            -(shares * np.log2(shares)).sum(),
            gradient,
            brightness.std(),
            np.quantile(saturation, 0.95),
            np.log1p(np.median(distance)),
            np.log1p(np.quantile(distance, 0.75)),
            np.log1p(np.median(border)),
            np.log1p(np.quantile(np.abs(np.diff(brightness, axis=1)), 0.6)),
            ground.mean(),
        ]
    )


def _words(text: str) -> list[str]:
    """Lower-case words of a text without articles and prepositions."""
    return [word for word in re.findall(r'[^\W\d_]+', text.lower()) if word not in _FUNCTION_WORDS]
