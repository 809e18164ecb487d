"""Photographs and any words, offline: what a classifier and a sentence encoder make of them together.

Reading order: name_photos (one call for the command line), PhotoAnswer, shipped_photos, photo_sheet.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.images import read_image
from .contact_sheet import contact_sheet
from .predictions import Prediction
from .predictor import Predictor

CONFIG = 'clip_detector_photos'
SHIPPED = ('astronaut', 'chelsea', 'coffee', 'rocket', 'camera', 'coins', 'hubble_deep_field', 'retina')
DEFAULT_WORDS = (
    'cat, astronaut, cup of coffee, rocket, photographer with a camera, old coins, stars and galaxies, '
    'human eye, dog, car, bicycle, banana'
)
_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')


@dataclass(frozen=True)
class PhotoAnswer:
    """What was found on one photograph.

    Attributes:
        name: of the file, or of the picture that scikit-image ships.
        words: the words by falling probability for the whole picture.
        probs: their probabilities.
        prediction: the regions that are not the whole picture, see ``Prediction``.
    """

    name: str
    words: tuple[str, ...]
    probs: tuple[float, ...]
    prediction: Prediction


def name_photos(
    folder: str | os.PathLike[str] | None,
    words: Any,
    out_dir: str | os.PathLike[str],
    predictor: Predictor | None = None,
    score_threshold: float = 0.25,
    max_per_image: int = 4,
) -> tuple[list[PhotoAnswer], Path]:
    """Name the photographs of a folder and draw them on one sheet.

    Args:
        folder: of pictures; None takes those that scikit-image ships.
        words: any spelling of ``Vocabulary.parse``; None takes ``DEFAULT_WORDS``.
        out_dir: receives ``photos.png``, the contact sheet, and ``photos.tsv``, the table.
        predictor: a detector to ask; by default that of ``clip_detector_photos``.
        score_threshold, max_per_image: regions that are drawn.
    Returns:
        an answer for each picture, and the path of the sheet.
    Raises:
        FileNotFoundError: no such folder, or one without pictures.
        ImportError: the extra ``ovd[photos]`` is not installed.
    """
    photos = shipped_photos() if folder is None else folder_photos(folder)
    predictor = Predictor(CONFIG) if predictor is None else predictor
    predictor.set_vocabulary(DEFAULT_WORDS if words is None else words)
    answers = []
    for name, picture in photos:
        (found,) = predictor.predict(picture)
        ranked, probs = _whole_picture(found, predictor.vocabulary.labels)
        parts = np.flatnonzero(~_covers_picture(found))
        shown = replace(
            found,
            boxes=found.boxes[parts],
            scores=found.scores[parts],
            labels=found.labels[parts],
            names=tuple(found.names[part] for part in parts),
            masks=None if found.masks is None else found.masks[parts],
        )
        answers.append(PhotoAnswer(name, ranked, probs, shown.select(score_threshold, max_per_image)))
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    sheet = out / 'photos.png'
    photo_sheet([picture for _, picture in photos], answers).save(sheet)
    (out / 'photos.tsv').write_text(table(answers), encoding='utf-8')
    return answers, sheet


def shipped_photos() -> list[tuple[str, np.ndarray]]:
    """Names and RGB pixels (uint8 [H, W, 3]) of the photographs that scikit-image ships with its code.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError:
        raise ImportError(
            'the pictures of scikit-image: pip install "ovd[photos]", or name a folder'
        ) from None
    found = []
    for name in SHIPPED:
        try:
            picture = getattr(skimage.data, name)()
        except Exception:  # a picture that this release of scikit-image would have to download
            continue
        picture = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture[..., :3]
        found.append((name, np.ascontiguousarray(picture.astype(np.uint8))))
    return found


def folder_photos(folder: str | os.PathLike[str]) -> list[tuple[str, np.ndarray]]:
    """Names and RGB pixels of the pictures in a folder, by name."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'the folder {folder} of photographs does not exist')
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f'the folder {folder} holds no picture: {", ".join(_SUFFIXES)}')
    return [(path.name, read_image(path)) for path in files]


def table(answers: Sequence[PhotoAnswer], best: int = 3) -> str:
    """Tab-separated lines: picture, its best words with probabilities, regions."""
    lines = ['picture\twords of the whole picture\tregions']
    for answer in answers:
        words = ', '.join(f'{w} {p:.2f}' for w, p in list(zip(answer.words, answer.probs))[:best])
        regions = ', '.join(f'{n} {s:.2f}' for n, s in zip(answer.prediction.names, answer.prediction.scores))
        lines.append(f'{answer.name}\t{words}\t{regions}')
    return '\n'.join(lines) + '\n'


def photo_sheet(pictures: Sequence[np.ndarray], answers: Sequence[PhotoAnswer]) -> Image.Image:
    """All pictures (RGB, uint8 [H, W, 3]) with their regions, and the best words below each."""
    drawn = [answer.prediction.draw(picture) for picture, answer in zip(pictures, answers)]
    texts = [
        [answer.name, *(f'{prob:.2f}  {word}' for word, prob in list(zip(answer.words, answer.probs))[:3])]
        for answer in answers
    ]
    return contact_sheet(drawn, texts)


def _covers_picture(found: Prediction) -> np.ndarray:
    """Which regions are at least nine tenths of the picture, bool [N]."""
    height, width = found.size
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    covers: np.ndarray = sides.prod(axis=1) >= 0.9 * height * width
    return covers


def _whole_picture(found: Prediction, labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Words by their best score for the whole picture, and these scores."""
    scores = dict.fromkeys(labels, 0.0)
    for name, score, covers in zip(found.names, found.scores, _covers_picture(found)):
        if covers:
            scores[name] = max(scores[name], float(score))
    ranked = sorted(scores, key=lambda label: -scores[label])
    return tuple(ranked), tuple(scores[label] for label in ranked)
