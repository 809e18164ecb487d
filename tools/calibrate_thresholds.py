"""Calibrate the thresholds below which a GroupViT group is background, and write them as JSON.

    python tools/calibrate_thresholds.py configs/groupvit_vits16_voc.py groupvit.safetensors --out voc.json
    python tools/calibrate_thresholds.py ... --without-masks

The data are the config's `calibration_dataloader`, never the images of reported scores. With masks, it fits
one threshold for all classes, one per class, and one predicted from text embeddings, also for classes without
masks. Without masks, the threshold of a class is a quantile of its scores on images unlikely to show it. Use
the file in a config as

    readout=dict(type='ovd.SoftReadout', background=dict(thresholds='voc.json', kind='per_class'))
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ovd.cli.console import COUNT, KeyValue, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, calibrate, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('checkpoint', help='weights of its model')
    parser.add_argument('--out', required=True, help='the JSON file to write')
    parser.add_argument('--without-masks', action='store_true', help='ignore labels')
    parser.add_argument('--data', default='calibration_dataloader', help='section; default: %(default)s')
    parser.add_argument('--limit', type=COUNT, help='number of images; default: all')
    parser.add_argument('--bins', type=int, default=1000, help='thresholds are exact to 1/BINS; %(default)s')
    masks = parser.add_argument_group('with masks')
    masks.add_argument(
        '--min-pixels',
        type=int,
        default=10_000,
        help='a class needs so many for its own threshold; %(default)s',
    )
    images = parser.add_argument_group('without masks')
    images.add_argument('--quantile', type=float, default=0.99, help='of the scores of a class; %(default)s')
    images.add_argument(
        '--max-prior', type=float, default=0.01, help='an image below it lacks the class; %(default)s'
    )
    images.add_argument(
        '--min-groups',
        type=int,
        default=1000,
        help='a class needs so many for its own threshold; %(default)s',
    )
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1'; default: the GPU if there is one")
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValue, default={}, metavar='KEY=VALUE', help='config changes'
    )
    args = parser.parse_args(argv)
    for name in ('bins', 'min_pixels', 'min_groups', 'limit'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f'--{name.replace("_", "-")} must be at least 1, got {getattr(args, name)}')
    if not 0 < args.quantile < 1:
        raise ValueError(f'--quantile must be between 0 and 1, got {args.quantile}')
    run(args)


def run(args: argparse.Namespace) -> None:
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    from ovd.config import check_needs, load_config
    from ovd.inference.predictor import Predictor
    from ovd.models.groupvit.calibration import calibrate, calibrate_without_masks

    config = load_config(args.config, args.cfg_options)
    check_needs(config, 'test')
    loader = config.get(args.data)
    if loader is None:
        raise ValueError(f'{args.config} has no {args.data}: choose a section of held-out images with --data')
    loader.batch_size = 1
    without_thresholds(config)
    predictor = Predictor(config, args.checkpoint, args.device)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmseg')):
        batches = Runner.build_dataloader(loader, seed=0)
    if args.without_masks:
        found = calibrate_without_masks(
            predictor.model, batches, args.quantile, args.max_prior, args.min_groups, args.bins, args.limit
        )
    else:
        meta = batches.dataset.metainfo
        if tuple(meta['classes']) != predictor.vocabulary.labels:
            raise ValueError(f'the data set of {args.data} and the model have different classes')
        found = calibrate(
            predictor.model,
            batches,
            meta.get('background') == 'class',
            args.min_pixels,
            args.bins,
            args.limit,
        )
    found.save(args.out)
    print(summary(found, args.out))


def without_thresholds(config: Any) -> None:
    """Remove thresholds from the config of the readout."""
    background = config.model.get('readout', {}).get('background')
    if isinstance(background, dict):
        rivals = {key: background[key] for key in ('names', 'learned') if background.get(key)}
        config.model.readout.background = rivals or None


def summary(found: Any, out: str) -> str:
    own = len(found.per_class) - len(found.fit['overall_for'])
    lines = [
        f'{out}: {found.fit["images"]} images, overall {found.overall:.3f}, {own} classes with their own'
    ]
    learned = found.fit.get('learned')
    if learned is not None:
        lines.append(
            f'learned from {learned["classes"]} classes: mean IoU {learned["held_out_iou"]:.3f} on classes '
            f'left out, {learned["overall_iou"]:.3f} with the overall threshold'
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(run_tool(main))
