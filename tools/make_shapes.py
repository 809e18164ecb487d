"""Draw OV-Shapes: pictures with boxes, masks, captions and grounded phrases, from a seed.

python tools/make_shapes.py --out data/shapes
"""

import argparse
import sys
from collections.abc import Sequence

from ovd.cli.console import run_tool


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description='Draw the OV-Shapes data set.')
    parser.add_argument('--out', default='data/shapes', help='folder to write (default: %(default)s)')
    parser.add_argument('--train', type=int, default=2000, help='training pictures (default: %(default)s)')
    parser.add_argument('--val', type=int, default=300, help='validation pictures (default: %(default)s)')
    parser.add_argument('--test', type=int, default=300, help='test pictures (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=128, help='side of a picture in pixels (default: %(default)s)'
    )
    args = parser.parse_args(argv)

    from tqdm import tqdm

    from ovd.shapes.files import ShapesPlan, is_drawn, write_shapes

    counts = {'train': args.train, 'val': args.val, 'test': args.test}
    plan = ShapesPlan(counts, seed=args.seed, size=args.size)
    if is_drawn(args.out, plan):
        print(f'{args.out} already holds these {sum(counts.values())} pictures')
        return
    with tqdm(total=sum(counts.values()), desc='drawing', unit='picture') as bar:
        write_shapes(args.out, plan, on_picture=bar.update)
    print(f'wrote {sum(counts.values())} pictures with annotations to {args.out}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
