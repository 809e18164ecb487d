"""``ovd bench``: pictures per second of a model on this machine, alone and as ``ovd predict`` runs it."""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from ... import options
from ...console import say
from ...question import ModelChoice, parse_words

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def bench(
    images: Annotated[list[str], typer.Argument(help='Files, folders, quoted globs.')],
    words: Annotated[str, typer.Option(help='What to ask for.')] = 'person, dog, car',
    model: options.Model = None,
    config: options.Config = None,
    checkpoint: options.Checkpoint = None,
    option: options.ConfigOption = None,
    device: options.Device = None,
    batch: options.Batch = 1,
    half: options.Half = False,
    workers: options.Workers = None,
    limit: Annotated[int, typer.Option(min=1, help='Pictures of each round.')] = 64,
    rounds: Annotated[int, typer.Option(min=1, help='Rounds, after one to warm up; medians count.')] = 3,
) -> None:
    """Measure how fast a model answers: the bare model on loaded pictures, then the whole of ovd predict.

    ovd bench photos/ --model glip-t --batch 4
    """
    chosen = ModelChoice(model, config, checkpoint, device, tuple(option or ()))
    chosen.check()
    vocabulary = parse_words(words)

    from ....inference.pictures.sources import find_pictures

    pictures = find_pictures(images, Path('bench'))[:limit]

    from ....inference.pictures.throughput import compare
    from ..pictures.predict import default_workers

    start = time.perf_counter()
    predictor = chosen.load().set_vocabulary(vocabulary)
    kind, seconds = type(predictor.model).__name__, time.perf_counter() - start
    say(f'{kind} on {predictor.device}, loaded in {seconds:.1f} s')
    threads = default_workers() if workers is None else workers
    with tempfile.TemporaryDirectory() as folder:
        bare, whole = compare(predictor, pictures, Path(folder), batch, threads, half, rounds)
    say(f'bare model          {bare:8.2f} pictures/s  (batch {batch}, {len(pictures)} pictures)')
    say(f'read, drawn, written{whole:8.2f} pictures/s  ({whole / bare:.2f} of the bare model)')
