"""Pictures per second: of the bare model, and with reading, drawing and writing beside it."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from ..predictor import LoadedImage, Predictor
from .sources import Picture
from .stream import Answered, Question, answers, autocast, finish
from .writers import make_record


def compare(
    predictor: Predictor,
    pictures: Sequence[Picture],
    folder: Path,
    batch_size: int = 1,
    workers: int = 2,
    half: bool = False,
    rounds: int = 3,
) -> tuple[float, float]:
    """(Bare, whole) pictures per second, medians of rounds in turn, after one of each to warm up.

    Args:
        predictor: with its words.
        pictures: files; all of them are kept in memory, preprocessed, for the bare model.
        folder: where drawn pictures go.
        batch_size, workers: see ``answers``.
        half: see ``Question``.
        rounds: of each kind.
    """
    loaded = [predictor.load(str(picture.path)) for picture in pictures]
    question = Question(threshold=None if predictor.is_segmentor else 0.3, half=half)
    seconds: list[list[float]] = [[], []]
    calls = (
        partial(_run_bare, predictor, loaded, batch_size, half),
        partial(_run_whole, predictor, pictures, question, folder, batch_size, workers),
    )
    for turn in range(rounds + 1):
        for kept, call in zip(seconds, calls):
            start = time.perf_counter()
            call()
            if predictor.device.type == 'cuda':
                torch.cuda.synchronize(predictor.device)
            if turn:
                kept.append(time.perf_counter() - start)
    bare, whole = (len(pictures) / median(kept) for kept in seconds)
    return bare, whole


def _run_bare(predictor: Predictor, loaded: Sequence[LoadedImage], batch_size: int, half: bool) -> None:
    """The model's own test step on inputs that are ready; answers stay on the device."""
    for start in range(0, len(loaded), batch_size):
        window = [item.data for item in loaded[start : start + batch_size]]
        batch = {
            'inputs': [item['inputs'] for item in window],
            'data_samples': [item['data_samples'].clone() for item in window],
        }
        with torch.no_grad(), autocast(predictor.device, half):
            predictor.model.test_step(batch)


def _run_whole(
    predictor: Predictor,
    pictures: Sequence[Picture],
    question: Question,
    folder: Path,
    batch_size: int,
    workers: int,
) -> None:
    """What ``ovd predict`` does: read, ask, draw, encode, write."""
    answered = answers(predictor, pictures, question, batch_size, workers)
    for _ in finish(answered, partial(_write, folder=folder), workers):
        pass


def _write(item: Answered, folder: Path) -> None:
    if item.error is not None or item.image is None:
        raise ValueError(f'{item.picture.name} cannot be used to measure: {item.error}')
    drawn = Image.fromarray(item.answer.draw(item.image))
    drawn.save(folder / f'{item.picture.stem}.jpg', quality=92)
    make_record(item.picture, item.answer)
