"""``ovd label``: annotations of a folder of pictures by a model, for training or for correction by hand."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import options
from ...console import USER_ERROR, one_line, say
from ...question import ModelChoice, parse_thresholds, parse_words
from ...summary import Summary
from .predict import default_workers

if TYPE_CHECKING:
    from ....inference.pictures.sources import Picture
    from ....inference.pictures.stream import Answered, Question
    from ....inference.pictures.writers import Record
    from ....inference.predictor import Predictor

FORMATS = ('coco', 'yolo', 'voc', 'labelme', 'cvat')

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def label(
    images: Annotated[str, typer.Argument(help='A folder, a file or a quoted glob.')],
    words: Annotated[str, typer.Argument(help='What to annotate: "dog, red car"; files too, as in predict.')],
    model: options.Model = None,
    config: options.Config = None,
    checkpoint: options.Checkpoint = None,
    option: options.ConfigOption = None,
    device: options.Device = None,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar='FORMAT', help=f'Several by commas: {", ".join(FORMATS)}; default: coco.'),
    ] = None,
    threshold: options.Threshold = None,
    topk: options.TopK = None,
    nms: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help='One name per object: IoU above which the better box stays.'),
    ] = 0.6,
    tile: options.Tile = None,
    overlap: options.Overlap = 0.2,
    out: Annotated[Path, typer.Option(help='Folder of the labels.')] = Path('outputs/label'),
    batch: options.Batch = 1,
    half: options.Half = False,
    workers: options.Workers = None,
    part: Annotated[int, typer.Option(min=1, help='Pictures that a killed job repeats at most.')] = 16,
    quiet: options.Quiet = False,
) -> int:
    """Annotate pictures: boxes, or masks where the model gives them.

    Kill it whenever you like: the same command continues. labels.json says how the labels were made.

        ovd label photos/ "dog, cat" --model glip-t --to yolo --out labels
    """
    chosen = ModelChoice(model, config, checkpoint, device, tuple(option or ()))
    chosen.check()
    formats = [name.strip() for entry in to or ['coco'] for name in entry.split(',') if name.strip()]
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f'--to {name}: expected one of {", ".join(FORMATS)}')
    vocabulary = parse_words(words)
    common, named = parse_thresholds(threshold or (), vocabulary.labels)

    from ....inference.pictures.sources import find_pictures
    from ....pseudo_labels.photos import PhotoLabelling

    pictures = find_pictures([images], out)
    chosen.locate()
    settings = {
        **chosen.describe(),
        'weights_sha256': chosen.fingerprint(),
        'thresholds': {'': common, **named},
        'answers': {'topk': topk, 'nms': nms, 'tile': tile, 'overlap': overlap, 'half': half},
    }
    labelling = PhotoLabelling(out, pictures, settings, vocabulary.labels, part)
    pending = labelling.pending()
    if pending:
        left = sum(len(labelling.plan[index]) for index in pending)
        say(
            f'{len(pictures)} pictures, {left} to do; loading {chosen.title} ...',
            err=True,
        )
        predictor = chosen.load().set_vocabulary(vocabulary)
        if predictor.is_segmentor and (common is not None or named or topk is not None):
            raise ValueError(
                f'--threshold and --topk select objects, {type(predictor.model).__name__} maps pixels'
            )
        asked = _question(predictor, common, named, topk, tile, overlap, half)
        threads = default_workers() if workers is None else workers
        annotate = partial(_annotate, predictor, asked, nms, batch, threads)
        _with_bar(labelling, annotate, left, quiet)
    records, broken = labelling.finish(formats)
    summary = Summary(vocabulary.labels)
    for record in records:
        summary.add(record.objects)
    for line in broken:
        say(line, err=True)
    if not quiet:
        say(f'{summary.table()}\n{len(records)} of {len(pictures)} pictures; labels in {out}')
    return USER_ERROR if broken else 0


def _question(
    predictor: 'Predictor',
    lowest: float | None,
    named: dict[str, float],
    topk: int | None,
    tile: int | None,
    overlap: float,
    half: bool,
) -> 'Question':
    from ....inference.pictures.stream import Question

    threshold = None if predictor.is_segmentor else lowest
    return Question(threshold=threshold, thresholds=named, topk=topk, tile=tile, overlap=overlap, half=half)


def _with_bar(labelling: Any, annotate: Any, total: int, quiet: bool) -> None:
    from tqdm import tqdm

    with tqdm(total=total, unit='img', disable=quiet or None) as bar:
        labelling.run(annotate, bar.update)


def _annotate(
    predictor: 'Predictor',
    asked: 'Question',
    nms: float,
    batch: int,
    workers: int,
    pictures: 'Sequence[Picture]',
) -> Iterator[tuple['Picture', 'Record | None', str]]:
    from ....inference.pictures.stream import answers, finish

    for item, record in finish(
        answers(predictor, pictures, asked, batch, workers), partial(_record, nms), workers
    ):
        yield item.picture, record, '' if item.error is None else one_line(item.error)


def _record(nms: float, item: 'Answered') -> 'Record | None':
    from ....inference.pictures.writers import make_record
    from ....inference.predictions import Prediction

    if item.error is not None:
        return None
    answer = item.answer
    if isinstance(answer, Prediction):
        answer = answer.suppress(nms, across_names=True)
    return make_record(item.picture, answer)
