"""Ask a model about images: for each one a picture and a JSON file.

    python tools/demo.py photo.jpg --texts "red star, heart, ring"
    python tools/demo.py photos/ "more/*.png" --texts words.txt --out outputs/photos
    python tools/demo.py photo.jpg --caption "a red star above a ring" \\
        --config configs/glip_shapes.py --checkpoint work_dirs/glip_shapes/latest.pth

A detector draws boxes, masks, names and scores; a segmentor gives every pixel a word, with a legend. Models
that group pixels show the groups with --groups, one picture for each stage, <image>_groups_1.png and so on.
Words are separated by commas, semicolons or full stops; a text or JSON file, or the name of a built-in
vocabulary ('coco', 'lvis', ...) works too. Without --texts the vocabulary of the config is asked for.

Models that read sentences, such as GLIP, find the phrases of a --caption: its nouns and what is said of them,
or those that --phrases gives, as words of the caption or as characters START:END.
"""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ovd.cli.console import USER_ERROR, KeyValue, one_line, run_tool
from ovd.inference.pictures.sources import find_images, output_stems

if TYPE_CHECKING:
    import numpy as np

    from ovd.inference.predictions import Prediction, Segmentation
    from ovd.inference.predictor import Predictor

DEFAULT_CONFIG = 'configs/vild_shapes.py'
DEFAULT_CHECKPOINT = 'work_dirs/vild_shapes/latest.pth'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files, folders, quoted globs')
    parser.add_argument('--texts', metavar='WORDS', help='what to look for, e.g. "red star, heart, ring"')
    parser.add_argument(
        '--caption', metavar='SENTENCE', help='find what a sentence names, instead of --texts'
    )
    parser.add_argument(
        '--phrases',
        nargs='+',
        metavar='PHRASE',
        help='phrases of the caption: words of it, or START:END; START:END+START:END for an interrupted one',
    )
    parser.add_argument('--config', default=DEFAULT_CONFIG, help='default: %(default)s')
    parser.add_argument('--checkpoint', default=DEFAULT_CHECKPOINT, help='default: %(default)s')
    parser.add_argument('--out', type=Path, default=Path('outputs/demo'), help='folder; default: %(default)s')
    parser.add_argument(
        '--score-thr', type=float, help="detectors: lowest score of an object; default: the model's threshold"
    )
    parser.add_argument(
        '--raw', action='store_true', help='score these words alone, as tools/test.py does: no rivals'
    )
    parser.add_argument('--max-per-image', type=int, help='detectors: show at most so many objects, the best')
    parser.add_argument(
        '--background',
        action=argparse.BooleanOptionalAction,
        help='segmentors with a background of their own: leave pixels that no word describes alone, or give '
        "each its best word; default: the former, unless a word of the list is 'background' or 'other'",
    )
    parser.add_argument(
        '--groups', choices=('first', 'final', 'all'), help='draw the groups of GroupViT: of which stage'
    )
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1'; default: the GPU if there is one")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValue,
        default={},
        metavar='KEY=VALUE',
        help='changes to the config',
    )
    parser.add_argument('--font', help='TrueType file, for names in alphabets that DejaVu Sans lacks')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr must lie between 0 and 1, got {args.score_thr}')
    if args.max_per_image is not None and args.max_per_image < 1:
        raise ValueError(f'--max-per-image must be at least 1, got {args.max_per_image}')
    if args.texts is not None and args.caption is not None:
        raise ValueError('--texts and --caption are two questions, give one of them')
    if args.phrases is not None and args.caption is None:
        raise ValueError('--phrases are those of a sentence, give it with --caption')
    if args.font is not None and not Path(args.font).is_file():
        raise FileNotFoundError(f'font {args.font} does not exist')
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f'--out {args.out} is a file, results need a folder')
    paths = find_images(args.images)
    require_model(args.config, args.checkpoint)

    from ovd.config import check_needs, load_config
    from ovd.inference.predictor import Predictor
    from ovd.text.vocabulary import Vocabulary

    vocabulary = None if args.texts is None else Vocabulary.parse(args.texts)
    config = load_config(args.config, args.cfg_options)
    check_needs(config, 'demo')
    predictor = Predictor(config, args.checkpoint, args.device)
    if vocabulary is not None:
        predictor.set_vocabulary(vocabulary)
    settle(predictor, args)
    return answer(predictor, paths, args)


def settle(predictor: 'Predictor', args: argparse.Namespace) -> None:
    """Fill in what was not said on the command line; refuse what does not go with the model.

    Raises:
        ValueError: an option of detectors with a segmentor, or the other way round.
    """
    from ovd.inference.predictions import find_background

    kind = type(predictor.model).__name__
    if args.groups is not None and not predictor.model.groups_pixels:
        raise ValueError(f'--groups is for models that group pixels, such as GroupViT; this is a {kind}')
    if not predictor.is_segmentor:
        if args.background is not None:
            raise ValueError(f'--background and --no-background are for segmentors, {kind} is a detector')
        return
    for option, value in (('--score-thr', args.score_thr), ('--max-per-image', args.max_per_image)):
        if value is not None:
            raise ValueError(f'{option} selects objects, {kind} is a segmentor: it labels pixels')
    if args.background is not None:
        predictor.set_background(args.background)
    elif predictor.with_background and find_background(predictor.vocabulary.labels) is not None:
        predictor.set_background(False)


def require_model(config: str, checkpoint: str) -> None:
    """Say what to run when the quickstart's model was never trained, or which file is missing."""
    if not Path(config).exists():
        from ovd.config import find_config

        find_config(config)
    if Path(checkpoint).exists():
        return
    if checkpoint == DEFAULT_CHECKPOINT:
        raise FileNotFoundError(
            f'no trained model at {checkpoint}: run `make demo` once (about ten minutes), '
            'or pass --config and --checkpoint of your own'
        )
    raise FileNotFoundError(f'checkpoint {checkpoint} does not exist')


def answer(predictor: 'Predictor', paths: list[Path], args: argparse.Namespace) -> int:
    """Predict, draw and write one image after the other; one that cannot be used does not stop the rest."""
    from PIL import Image

    from ovd.datasets.images import BrokenImageError, read_image
    from ovd.files import atomic_path, write_json

    words = None if args.caption is not None else list(predictor.vocabulary.labels)
    colors = None if words is None else predictor.colors()
    failed = found = 0
    start = time.perf_counter()
    limits = {'score_threshold': args.score_thr, 'max_per_image': args.max_per_image, 'raw': args.raw}
    for path, stem in zip(paths, output_stems(paths, args.out)):
        try:
            image = read_image(path)
            if args.caption is None:
                (prediction,) = predictor.predict(image, **limits)
            else:
                (prediction,) = predictor.ground(image, args.caption, parse_phrases(args.phrases), **limits)
        except (OSError, BrokenImageError) as error:
            failed += 1
            print(f'{path}: {one_line(error)}', file=sys.stderr)
            continue
        picture = args.out / f'{stem}.png'
        with atomic_path(picture) as temporary:
            Image.fromarray(prediction.draw(image, colors, args.font)).save(temporary, format='PNG')
        if args.groups is not None:
            draw_groups(predictor, image, stem, args)
        header: dict[str, object] = {'image': str(path)} | ({} if words is None else {'vocabulary': words})
        if not predictor.is_segmentor:
            header['score_threshold'] = (
                predictor.options.threshold if args.score_thr is None else args.score_thr
            )
        write_json(args.out / f'{stem}.json', header | prediction.to_dict())
        found += len(prediction)
        text = describe_areas(prediction) if predictor.is_segmentor else describe(prediction)
        print(f'{path}: {text} -> {picture}')
    done = len(paths) - failed
    if len(paths) > 1 or failed:
        seconds, what = time.perf_counter() - start, 'word' if predictor.is_segmentor else 'object'
        plural = '' if found == 1 else 's'
        print(
            f'{done} of {len(paths)} images, {found} {what}{plural}, {seconds:.1f} s; results in {args.out}'
        )
    return USER_ERROR if failed else 0


def parse_phrases(phrases: Sequence[str] | None) -> list[str | list[list[int]]] | None:
    """'red star' is itself, '2:10' is [[2, 10]], '2:5+35:39' is [[2, 5], [35, 39]]."""
    if phrases is None:
        return None
    span = r'\d+:\d+'
    return [
        [[int(end) for end in part.split(':')] for part in phrase.split('+')]
        if re.fullmatch(rf'{span}(\+{span})*', phrase)
        else phrase
        for phrase in phrases
    ]


def draw_groups(predictor: 'Predictor', image: 'np.ndarray', stem: str, args: argparse.Namespace) -> None:
    """Write a picture of the groups of each stage that was asked for."""
    from PIL import Image

    from ovd.files import atomic_path
    from ovd.inference.draw_groups import find_groups

    stages = find_groups(predictor.model, *predictor.prepare(image))
    chosen = {'first': stages[:1], 'final': stages[-1:], 'all': stages}[args.groups]
    for groups in chosen:
        with atomic_path(args.out / f'{stem}_groups_{groups.stage}.png') as temporary:
            Image.fromarray(groups.draw(image, args.font)).save(temporary, format='PNG')


def describe(prediction: 'Prediction') -> str:
    """For example '3 objects (2 heart 0.98, ring 0.71)': each name with its count and its best score."""
    if not len(prediction):
        return 'nothing found'
    counts = Counter(prediction.names)
    best = dict(zip(reversed(prediction.names), reversed(prediction.scores)))
    listed = ', '.join(
        f'{count} {name} {best[name]:.2f}' if count > 1 else f'{name} {best[name]:.2f}'
        for name, count in counts.items()
    )
    return f'{len(prediction)} object{"s" if len(prediction) > 1 else ""} ({listed})'


def describe_areas(found: 'Segmentation', shown: int = 8) -> str:
    """For example '2 words (sky 41 %, dog 7 %), background 52 %': shares of the image, the largest first."""
    pixels = found.labels.size
    listed = [f'{name} {100 * area / pixels:.0f} %' for name, area in found.areas.items()]
    if len(listed) > shown:
        listed = [*listed[:shown], f'and {len(listed) - shown} more']
    count = f'{len(found)} word{"s" if len(found) != 1 else ""}'
    text = f'{count} ({", ".join(listed)})' if listed else 'no word found'
    if found.background_area:
        text += f', {found.background_name} {100 * found.background_area / pixels:.0f} %'
    return text


if __name__ == '__main__':
    sys.exit(run_tool(main))
