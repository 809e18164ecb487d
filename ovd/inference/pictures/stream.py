"""Many pictures through one model: files are read and answers are drawn and written in threads beside it.

Reading order: Question, answers, finish.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ...datasets.images import BrokenImageError, decode_image, read_image
from ...threads import map_ahead
from ..predictions import Prediction
from ..predictor import Predictor
from .sources import Picture
from .tiling import predict_tiled


@dataclass(frozen=True)
class Question:
    """What is asked of every picture; the words are the predictor's.

    Attributes:
        sentence: find what this names, instead of the words.
        threshold: lowest score of an instance; None: what the predictor takes by default.
        thresholds: lowest scores of single names, which replace the common one.
        topk: the best so many instances of a picture are kept.
        tile: side of the tiles that a picture is cut into, in pixels; None asks about whole pictures.
        overlap: see ``tile_windows``.
        raw: see ``Predictor.predict``.
        half: compute in 16 bits: float16 on a GPU, bfloat16 on a CPU.
    """

    sentence: str | None = None
    threshold: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    topk: int | None = None
    tile: int | None = None
    overlap: float = 0.2
    half: bool = False
    raw: bool = False


class Answered(NamedTuple):
    """A picture with its answer, or with what is wrong with it."""

    picture: Picture
    image: np.ndarray | None
    answer: Any
    error: Exception | None


def answers(
    predictor: Predictor,
    pictures: Iterable[Picture],
    question: Question,
    batch_size: int = 1,
    workers: int = 2,
) -> Iterator[Answered]:
    """Ask about pictures in their order; one that cannot be read does not stop the rest.

    Args:
        predictor: with the words.
        pictures: see ``find_pictures``.
        question: see ``Question``.
        batch_size: pictures per forward at most.
        workers: threads that read and preprocess pictures ahead; 0 reads in line.
    """
    load = partial(_load, predictor, question.tile is None)
    window: list[tuple[Picture, np.ndarray | None, Any]] = []
    for item in map_ahead(load, pictures, workers):
        window.append(item)
        if len(window) == batch_size:
            yield from _answer(predictor, window, question)
            window = []
    if window:
        yield from _answer(predictor, window, question)


def finish(
    answered: Iterable[Answered], function: Callable[[Answered], Any], workers: int = 2
) -> Iterator[tuple[Answered, Any]]:
    """Call a function, such as one that draws and writes, in threads beside the model."""
    return map_ahead(lambda item: (item, function(item)), answered, workers)


def _load(predictor: Predictor, preprocess: bool, picture: Picture) -> tuple[Picture, np.ndarray | None, Any]:
    """(picture, pixels, preprocessed input or the error)."""
    try:
        if picture.data is not None:
            image = decode_image(picture.data, picture.name)
        else:
            assert picture.path is not None
            image = read_image(picture.path)
        return picture, image, predictor.load(image) if preprocess else image
    except (OSError, BrokenImageError) as error:
        return picture, None, error


def _answer(
    predictor: Predictor, window: Sequence[tuple[Picture, np.ndarray | None, Any]], question: Question
) -> Iterator[Answered]:
    sound = [loaded for _, image, loaded in window if image is not None]
    found = iter(_ask(predictor, sound, question, len(window)) if sound else ())
    for picture, image, loaded in window:
        if image is None:
            yield Answered(picture, None, None, loaded)
            continue
        answer = next(found)
        yield Answered(picture, image, answer, answer if isinstance(answer, Exception) else None)


def _ask(predictor: Predictor, images: list[Any], question: Question, batch_size: int) -> list[Any]:
    options: dict[str, Any] = {'batch_size': batch_size, 'raw': question.raw}
    if question.threshold is not None:
        options['score_threshold'] = min([question.threshold, *question.thresholds.values()])
    elif question.thresholds:
        options['score_threshold'] = question.thresholds
    if question.topk is not None and not question.thresholds:
        options['max_per_image'] = question.topk
    ask: Callable[[Any], list[Any]] = partial(predictor.predict, **options)
    if question.sentence is not None:
        ask = partial(predictor.ground, caption=question.sentence, **options)
    with autocast(predictor.device, question.half):
        if question.tile is None:
            found = ask(images)
        else:
            found = [_ask_tiles(ask, image, question.tile, question.overlap) for image in images]
    return [_select(answer, question) for answer in found]


def _ask_tiles(ask: Callable[[Any], list[Any]], image: np.ndarray, tile: int, overlap: float) -> Any:
    """The answer on a picture in tiles, or the error where the model cannot take one."""
    try:
        return predict_tiled(ask, image, tile, overlap)
    except BrokenImageError as error:
        return error


def autocast(device: torch.device, half: bool) -> Any:
    """16-bit arithmetic, float16 on a GPU, bfloat16 on a CPU; nothing changes if not half."""
    if not half:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if device.type == 'cuda' else torch.bfloat16)


def _select(answer: Any, question: Question) -> Any:
    """Apply the thresholds of single names, and with tiles the number of instances."""
    if not isinstance(answer, Prediction):
        return answer
    lowest = question.threshold or 0.0
    least = np.array([question.thresholds.get(name, lowest) for name in answer.names])
    kept = np.flatnonzero(answer.scores >= least)
    return answer.keep(kept[: question.topk])
