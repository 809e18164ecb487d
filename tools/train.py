"""Train the model of a config.

python tools/train.py configs/vild_shapes.py [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--seed N]
    [--cfg-options KEY=VALUE ...] [--launcher pytorch|slurm]
"""

import argparse
import sys
from collections.abc import Sequence

from ovd.cli.console import add_config_arguments, read_config, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, build the Runner and train."""
    parser = argparse.ArgumentParser(description='Train the model of a config.')
    add_config_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from the latest checkpoint of the work directory, or from the one given',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on GPU, bfloat16 on CPU')
    parser.add_argument('--seed', type=int, help="overrides the config's randomness.seed")
    args = parser.parse_args(argv)
    config = read_config(args, 'train')

    from ovd.training.runner import build_runner, prepare_training

    prepare_training(config, resume=args.resume, amp=args.amp, seed=args.seed)
    build_runner(config).train()


if __name__ == '__main__':
    sys.exit(run_tool(main))
