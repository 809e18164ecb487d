"""Train the model of a config.

python tools/train.py configs/vild_shapes.py [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--seed N]
    [--cfg-options KEY=VALUE ...] [--launcher pytorch|slurm]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...bare_errors import doing
from ...console import SEED, Parser, add_config_arguments, launched_rank, read_config, say


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line, build the Runner and train."""
    parser = Parser(prog=program, description='Train the model of a config.')
    add_config_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from the latest checkpoint of the work directory, or from the one given',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on GPU, bfloat16 on CPU')
    parser.add_argument('--seed', type=SEED, help="overrides the config's randomness.seed")
    parser.add_argument(
        '--tensorboard', action='store_true', help='write curves for TensorBoard into the work directory'
    )
    parser.add_argument(
        '--no-pack', action='store_true', help='write no model folder of the trained model (WORK_DIR/model)'
    )
    args = parser.parse_args(argv)
    config = read_config(args, 'train')
    if args.launcher == 'none':
        say(f'{args.config}: building model and data; results go to {config.work_dir}')

    from ....training.options import log_to_tensorboard, prepare_training
    from ....training.runner import build_runner
    from ....training.work_dir import only_training_in

    with only_training_in(config.work_dir, launched_rank(args.launcher)):
        with doing(f'building the training of {args.config}'):
            prepare_training(config, resume=args.resume, amp=args.amp, seed=args.seed)
            if args.tensorboard:
                log_to_tensorboard(config)
            runner = build_runner(config)
        with doing(f'training {args.config} in {config.work_dir}'):
            runner.train()
        if runner.rank == 0 and not args.no_pack:
            del runner
            pack_trained(config, Path(args.config).stem)


def pack_trained(config: Any, name: str) -> None:
    """Write the model folder of a finished training; a failure is told and does not undo the training."""
    from ....inference.model_folders.packing import pack_training
    from ....training.hooks import find_latest

    latest = find_latest(config.work_dir)
    if latest is None:
        return
    try:
        folder = pack_training(config, latest, name)
    except (OSError, ValueError) as error:
        say(f'no model folder was written: {" ".join(str(error).split())}')
        return
    if folder is not None:
        say(f'Model folder: {folder}')
