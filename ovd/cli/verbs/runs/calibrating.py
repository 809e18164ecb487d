"""Find the thresholds at which the answers of a model are mostly right, and store them beside its weights.

ovd calibrate vild_shapes work_dirs/vild_shapes/latest.pth [--precision 0.9] [--max-images N]
    --annotations data/shapes/annotations/instances_val.json --images data/shapes/val
"""

from collections.abc import Sequence
from pathlib import Path

from ...console import COUNT, Parser, add_config_arguments, read_config, say


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line, fit, write ``answering.json``."""
    parser = Parser(prog=program, description='Find the thresholds of a model on validation data.')
    add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='weights; answering.json goes beside them')
    parser.add_argument('--annotations', required=True, help='COCO instances file of validation pictures')
    parser.add_argument('--images', required=True, help='folder of these pictures')
    parser.add_argument('--precision', type=float, default=0.9, help='share of right answers; default 0.9')
    parser.add_argument('--max-images', type=COUNT, help='use the first so many pictures')
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1'; default: the GPU if there is one")
    args = parser.parse_args(argv)
    if not 0 < args.precision <= 1:
        raise ValueError(f'--precision is {args.precision}, expected a number above 0 and up to 1')
    config = read_config(args, 'demo')

    from ....inference.fit_answers import fit_answers
    from ....inference.predictor import Predictor

    predictor = Predictor(config, args.checkpoint, args.device)
    options = fit_answers(
        predictor, args.annotations, args.images, args.precision, max_images=args.max_images
    )
    path = options.save(args.checkpoint.parent)
    lowest = options.min_area if predictor.is_segmentor else options.threshold
    say(f'{"smallest share of the image" if predictor.is_segmentor else "threshold"} {lowest:.4f}')
    say(f'written to {path}')
