"""``ovd predict``: words and pictures in; pictures, COCO results and files for other programs out."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import options
from ...console import USER_ERROR, one_line, say
from ...question import ModelChoice, check_sentence, parse_thresholds, parse_words
from ...summary import Summary

if TYPE_CHECKING:
    from ....inference.pictures.sources import Picture
    from ....inference.pictures.stream import Answered, Question
    from ....inference.pictures.writers import Record
    from ....inference.predictor import Predictor
    from ....text.vocabulary import Vocabulary

FORMATS = ('coco', 'yolo', 'voc', 'labelme', 'cvat', 'csv', 'parquet', 'masks')
PICTURES = {'jpg': 'JPEG', 'png': 'PNG'}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def predict(
    question: Annotated[
        str,
        typer.Argument(
            help='Words by commas, semicolons or full stops, "dog, red car"; a text or JSON file; a built-in '
            'vocabulary such as "coco"; with --sentence, a sentence.'
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(help='Files, folders, quoted globs; - reads an image, or paths, from standard input.'),
    ],
    model: options.Model = None,
    config: options.Config = None,
    checkpoint: options.Checkpoint = None,
    option: options.ConfigOption = None,
    device: options.Device = None,
    sentence: Annotated[
        bool, typer.Option('--sentence', help='Find what a sentence names (models that read sentences).')
    ] = False,
    threshold: options.Threshold = None,
    topk: options.TopK = None,
    background: options.Background = None,
    tile: options.Tile = None,
    overlap: options.Overlap = 0.2,
    raw: Annotated[
        bool, typer.Option('--raw', help='What the model scores for these words alone, as ovd test does.')
    ] = False,
    out: Annotated[Path, typer.Option(help='Folder of the results.')] = Path('outputs/predict'),
    pictures: Annotated[str, typer.Option(help='Drawn pictures: jpg, png or none.')] = 'jpg',
    save: Annotated[
        list[str] | None,
        typer.Option(metavar='FORMAT', help=f'Also write, several by commas: {", ".join(FORMATS)}.'),
    ] = None,
    lines: Annotated[
        str | None,
        typer.Option('--json', help='One JSON line per picture into a file; - is the output.'),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help='COCO file that gives pictures and words their ids.')
    ] = None,
    font: Annotated[
        Path | None, typer.Option(help='TrueType file, for alphabets that DejaVu Sans lacks.')
    ] = None,
    batch: options.Batch = 1,
    half: options.Half = False,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> int:
    """Find words in pictures.

    Writes a drawn picture for each one and predictions.json (COCO results) into --out, and says how often
    each word was found.

        ovd predict "dog, red car, person on a bike" photos/ --model glip-t
        ovd predict "dog" photos/ -m glip-t -t 0.4 --save yolo,csv --out found
        cat photo.jpg | ovd predict "dog" - -m glip-t --json - --pictures none
    """
    chosen = ModelChoice(model, config, checkpoint, device, tuple(option or ()))
    task = Task(
        text=question,
        is_sentence=sentence,
        thresholds=tuple(threshold or ()),
        topk=topk,
        background=background,
        tile=tile,
        overlap=overlap,
        raw=raw,
        out=out,
        pictures=pictures,
        save=tuple(part.strip() for entry in save or () for part in entry.split(',') if part.strip()),
        lines=lines,
        annotations=annotations,
        font=font,
        batch=batch,
        half=half,
        workers=default_workers() if workers is None else workers,
        quiet=quiet,
    )
    return run(chosen, task, images)


@dataclass(frozen=True)
class Task:
    """The options of ``ovd predict`` beside the model and the pictures; see its help."""

    text: str
    is_sentence: bool
    thresholds: tuple[str, ...]
    topk: int | None
    background: bool | None
    tile: int | None
    overlap: float
    raw: bool
    out: Path
    pictures: str
    save: tuple[str, ...]
    lines: str | None
    annotations: Path | None
    font: Path | None
    batch: int
    half: bool
    workers: int
    quiet: bool

    def check(self) -> None:
        """Refuse what cannot be written.

        Raises:
            ValueError, OSError: one line.
        """
        unknown = [name for name in self.save if name not in FORMATS]
        if unknown:
            raise ValueError(f'--save {unknown[0]}: expected one of {", ".join(FORMATS)}')
        if self.pictures not in (*PICTURES, 'none'):
            raise ValueError(f'--pictures {self.pictures}: expected jpg, png or none')
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f'--out {self.out} is a file, results need a folder')
        if self.font is not None and not self.font.is_file():
            raise FileNotFoundError(f'font {self.font} does not exist')
        if self.annotations is not None and not self.annotations.is_file():
            raise FileNotFoundError(f'annotation file {self.annotations} does not exist')


def default_workers() -> int:
    """Threads for reading, and as many for writing: half the cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(8, cores // 2))


def run(chosen: ModelChoice, task: Task, images: Sequence[str]) -> int:
    """Check the question, load the model, answer; the exit code."""
    from ....inference.pictures.sources import STDIN, find_pictures

    chosen.check()
    task.check()
    words = None if task.is_sentence else parse_words(task.text)
    common, named = parse_thresholds(task.thresholds, words.labels if words is not None else ())
    stdin = sys.stdin.buffer.read() if list(images) == [STDIN] else b''
    pictures = find_pictures(images, task.out, stdin)
    chosen.locate()
    if task.is_sentence:
        check_sentence(task.text, chosen.model_type())
    if not task.quiet:
        say(f'loading {chosen.title} ...', err=True)
    predictor = chosen.load()
    if words is not None:
        ask_for(predictor, words)
    common = fit_model(predictor, task, common, named)

    from ....inference.pictures.stream import Question

    asked = Question(
        sentence=task.text if task.is_sentence else None,
        threshold=common,
        thresholds=named,
        topk=task.topk,
        tile=task.tile,
        overlap=task.overlap,
        half=task.half,
        raw=task.raw,
    )
    return answer(predictor, pictures, asked, task, chosen)


def ask_for(predictor: 'Predictor', words: 'Vocabulary') -> None:
    """Ask for words; where they are the model's own, with all that its vocabulary knows of them."""
    try:
        own = predictor.vocabulary
    except ValueError:  # a model without words of its own
        own = None
    if own is None or words.labels not in (own.labels, own.names):
        predictor.set_vocabulary(words)


def fit_model(
    predictor: 'Predictor', task: Task, common: float | None, named: dict[str, float]
) -> float | None:
    """Refuse options that do not go with the model; return the common threshold.

    Raises:
        ValueError: an option of detectors with a segmentor, or the other way round.
    """
    from ....inference.predictions import find_background

    kind = type(predictor.model).__name__
    if not predictor.is_segmentor:
        if task.background is not None:
            raise ValueError(f'--background is for models that map pixels, {kind} finds objects')
        return common
    for option, value in (('--threshold', common is not None or named), ('--topk', task.topk is not None)):
        if value:
            raise ValueError(f'{option} selects objects, {kind} maps pixels')
    if task.background is not None:
        predictor.set_background(task.background)
    elif predictor.with_background and find_background(predictor.vocabulary.labels) is not None:
        predictor.set_background(False)
    return None


def answer(
    predictor: 'Predictor',
    pictures: Sequence['Picture'],
    asked: 'Question',
    task: Task,
    chosen: ModelChoice,
) -> int:
    """Ask, draw and write; bars and tables go to stderr, JSON lines to where they were asked for."""
    from contextlib import ExitStack

    from tqdm import tqdm

    from ....inference.draw import name_colors
    from ....inference.pictures.stream import answers, finish

    names = None if task.is_sentence else predictor.vocabulary.labels
    colors = None if names is None else name_colors(names)
    summary = Summary(names or ())
    records: list[Record] = []
    failed = 0
    told: set[str] = set()
    with ExitStack() as stack:
        stream = None
        if task.lines is not None and task.lines != '-':
            Path(task.lines).parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(open(task.lines, 'w', encoding='utf-8'))
        hidden = task.quiet or (len(pictures) == 1)
        bar = stack.enter_context(tqdm(total=len(pictures), unit='img', disable=hidden or None, leave=False))
        answered = answers(predictor, pictures, asked, task.batch, task.workers)
        write = partial(draw_and_record, task=task, colors=colors)
        for item, record in finish(answered, write, task.workers):
            bar.update()
            if record is None:
                failed += 1
                bar.write(
                    f'{item.picture.name}: {one_line(item.error or ValueError("no answer"))}', sys.stderr
                )
                continue
            for notice in item.answer.notices:
                if notice not in told:
                    told.add(notice)
                    bar.write(f'{item.picture.name}: {notice}', sys.stderr)
            if names is None:
                names = item.answer.shown
            summary.add(record.objects)
            records.append(record)
            if task.lines is not None:
                line = json.dumps({'image': record.image} | item.answer.to_dict(), ensure_ascii=False)
                say(line) if stream is None else stream.write(line + '\n')
    write_files(records, names or (), task, chosen)
    if not task.quiet:
        text = '' if names is None else summary.table() + '\n'
        say(f'{text}{len(records)} of {len(pictures)} pictures; results in {task.out}', err=task.lines == '-')
    return USER_ERROR if failed else 0


def draw_and_record(item: 'Answered', task: Task, colors: Any) -> 'Record | None':
    """Write the drawn picture of an answer; its record, or None where there is no answer."""
    from PIL import Image

    from ....files import atomic_path
    from ....inference.pictures.writers import make_record

    if item.error is not None or item.image is None:
        return None
    if task.pictures != 'none':
        drawn = Image.fromarray(item.answer.draw(item.image, colors, task.font))
        with atomic_path(task.out / f'{item.picture.stem}.{task.pictures}') as temporary:
            drawn.save(temporary, format=PICTURES[task.pictures], quality=92, compress_level=1)
    return make_record(item.picture, item.answer)


def write_files(records: Sequence['Record'], names: Sequence[str], task: Task, chosen: ModelChoice) -> None:
    """``predictions.json`` and the formats of ``--save``."""
    from ....files import write_json
    from ....inference.pictures.writers import FORMATS, coco_results, ids_of_annotations, number

    ids = number(records, names)
    if task.annotations is not None:
        content = json.loads(task.annotations.read_text(encoding='utf-8'))
        ids = ids_of_annotations(records, names, content)
    write_json(task.out / 'predictions.json', coco_results(records, ids), indent=None)
    images = [{'id': image_id, 'file_name': record.image} for image_id, record in zip(ids.images, records)]
    categories = [{'id': category, 'name': name} for category, name in ids.categories]
    about = {'question': task.text, **chosen.describe(), 'images': images, 'categories': categories}
    write_json(task.out / 'question.json', about)
    for name in dict.fromkeys(task.save):
        FORMATS[name](records, ids, task.out)
