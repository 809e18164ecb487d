"""Evaluate a checkpoint and write the metrics with their protocol.

python tools/test.py configs/vild_shapes.py work_dirs/vild_shapes/latest.pth [--out metrics.json]
    [--vocabulary SPEC] [--shuffle-text] [--work-dir DIR] [--cfg-options KEY=VALUE ...]
    [--launcher pytorch|slurm]
"""

import os
from collections.abc import Sequence

from ...bare_errors import doing
from ...console import Parser, add_config_arguments, read_config, say


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line, evaluate, write the report."""
    parser = Parser(prog=program, description='Evaluate a checkpoint.')
    add_config_arguments(parser)
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='a training checkpoint or a safetensors file; left out for models without weights of their own',
    )
    parser.add_argument('--out', help='where the metrics go; default metrics.json in the work directory')
    parser.add_argument('--vocabulary', help="classes to test with: a built-in set, a file, or 'a, b, c'")
    parser.add_argument(
        '--shuffle-text',
        action='store_true',
        help='a control: novel classes get the words of one another (all classes, where none is novel)',
    )
    parser.add_argument('--dump', metavar='FILE', help='write the predictions too: COCO results, JSON')
    args = parser.parse_args(argv)
    config = read_config(args, 'test')
    out = args.out or os.path.join(config.work_dir, 'metrics.json')
    if os.path.isdir(out):
        raise IsADirectoryError(f'--out {out} is a folder, the metrics need the name of a file')

    from ....files import write_json
    from ....training.options import dump_predictions, prepare_testing
    from ....training.reports import evaluate
    from ....training.runner import build_runner

    prepare_testing(config, args.checkpoint, args.vocabulary, args.shuffle_text)
    if args.dump is not None:
        dump_predictions(config, args.dump)
    with doing(f'building the test of {args.config}'):
        runner = build_runner(config)
    protocol = {'config': args.config, 'checkpoint': args.checkpoint, 'shuffled_text': args.shuffle_text}
    with doing(f'testing {args.checkpoint} with {args.config}'):
        report = evaluate(runner, protocol)
    if runner.rank == 0:
        write_json(out, report)
        say(f'metrics written to {out}')
