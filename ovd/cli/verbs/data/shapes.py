"""``ovd data``: data sets that ovd makes itself."""

from collections.abc import Sequence

from ...console import SEED, Parser, check_folder, say


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run ``shapes``, the one data set so far."""
    parser = Parser(prog=program, description='Data sets that ovd makes itself.')
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('shapes', help='draw OV-Shapes: boxes, masks, captions, phrases')
    add_shapes_arguments(command)
    args = parser.parse_args(argv)
    draw_shapes(args.out, {'train': args.train, 'val': args.val, 'test': args.test}, args.seed, args.size)


def shapes(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Draw OV-Shapes: the script ``tools/make_shapes.py``."""
    parser = Parser(prog=program, description='Draw the OV-Shapes data set.')
    add_shapes_arguments(parser)
    args = parser.parse_args(argv)
    draw_shapes(args.out, {'train': args.train, 'val': args.val, 'test': args.test}, args.seed, args.size)


def add_shapes_arguments(parser: Parser) -> None:
    """Where, how many, from which seed."""
    parser.add_argument('--out', default='data/shapes', help='folder to write (default: %(default)s)')
    parser.add_argument('--train', type=int, default=2000, help='training pictures (default: %(default)s)')
    parser.add_argument('--val', type=int, default=300, help='validation pictures (default: %(default)s)')
    parser.add_argument('--test', type=int, default=300, help='test pictures (default: %(default)s)')
    parser.add_argument('--seed', type=SEED, default=0, help='random seed (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=128, help='side of a picture in pixels (default: %(default)s)'
    )


def draw_shapes(out: str, counts: dict[str, int], seed: int, size: int) -> None:
    """Draw the pictures, unless the folder holds these very ones."""
    from tqdm import tqdm

    for name, count in counts.items():
        if count < 0:
            raise ValueError(f'--{name} is {count}, expected 0 or more pictures')
    if not sum(counts.values()):
        raise ValueError('--train, --val and --test are 0: no picture to draw')
    check_folder(out, '--out')
    from ....shapes.files import ShapesPlan, is_drawn, write_shapes

    plan = ShapesPlan(counts, seed=seed, size=size)
    if is_drawn(out, plan):
        say(f'{out} already holds these {sum(counts.values())} pictures')
        return
    with tqdm(total=sum(counts.values()), desc='drawing', unit='picture') as bar:
        write_shapes(out, plan, on_picture=bar.update)
    say(f'wrote {sum(counts.values())} pictures with annotations to {out}')
