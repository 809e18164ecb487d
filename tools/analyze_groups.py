"""Measure the masks of a GroupViT apart from its naming, beside two baselines.

    python tools/analyze_groups.py configs/groupvit_vits16_voc.py groupvit.safetensors [--out groups.json]

Rows: the checkpoint, the same model before training, and a grid of as many rectangles as the model has
groups. Columns: `mIoU` of the predictions; `oracle`, mIoU with the best class for each group; `outlines`, the
same near outlines; `classes`, IoU of the best group for each class of an image; `objects`, for each connected
component; `used`, groups per image with a pixel. Groups are of the whole image; `mIoU` uses the config's
test_cfg.
"""

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovd.cli.console import COUNT, add_config_arguments, read_config, run_tool

COLUMNS = {
    'mIoU': 'seg/mIoU',
    'oracle': 'groups/{}oracle_mIoU',
    'outlines': 'groups/{}oracle_boundary_mIoU',
    'classes': 'groups/{}class_IoU',
    'objects': 'groups/{}object_IoU',
    'used': 'groups/{}used',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, evaluate twice, write and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='a training checkpoint or a safetensors file')
    parser.add_argument('--out', help='result file; default: groups.json in the work directory')
    parser.add_argument('--limit', type=COUNT, help='number of images; default: all')
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f'--limit must be at least 1, got {args.limit}')
    config = read_config(args, 'test')

    from ovd.files import write_json

    prepare(config, args.limit)
    protocol = {'config': args.config, 'checkpoint': args.checkpoint}
    with tempfile.TemporaryDirectory() as folder:
        start, groups = write_untrained(config, Path(folder))
        config.test_evaluator[1]['baseline_groups'] = groups
        trained, rank = measure(config, args.checkpoint, protocol)
        untrained, _ = measure(config, start, protocol)
    if rank == 0:
        reports = {'trained': trained, 'before training': untrained}
        out = args.out or os.path.join(config.work_dir, 'groups.json')
        write_json(out, reports)
        print(f'{table(reports, groups)}\nwritten to {out}')


def prepare(config: Any, limit: int | None) -> None:
    """Configure the test to keep and measure groups."""
    if config.get('test_dataloader') is None:
        raise ValueError('the config has no test_dataloader')
    config.model.test_cfg = dict(config.model.get('test_cfg') or {}, keep_groups=True)
    config.test_evaluator = [{'type': 'ovd.SegmentationMetric'}, {'type': 'ovd.GroupingMetric'}]
    if limit is not None:
        config.test_dataloader.dataset.indices = limit


def measure(config: Any, checkpoint: str | Path, protocol: dict[str, str]) -> tuple[dict[str, Any], int]:
    """Evaluate one checkpoint; returns its report and the rank of this process."""
    from ovd.training.options import prepare_testing
    from ovd.training.reports import evaluate
    from ovd.training.runner import build_runner

    config = copy.deepcopy(config)
    prepare_testing(config, checkpoint)
    runner = build_runner(config)
    return evaluate(runner, protocol), runner.rank


def write_untrained(config: Any, folder: Path) -> tuple[Path, int]:
    """Save initial weights; returns their path and the number of groups."""
    import logging

    from mmengine.registry import DefaultScope
    from mmengine.runner import set_random_seed

    from ovd.checkpoints.writing import save_tensors
    from ovd.models.groupvit.segmentor import GroupViT
    from ovd.registry import MODELS

    set_random_seed(config.get('randomness', {}).get('seed') or 0)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmseg')):
        model = MODELS.build(copy.deepcopy(config.model))
        if not isinstance(model, GroupViT):
            raise ValueError(f'the model {config.model.type!r} of this config does not group pixels')
        logging.disable(logging.INFO)  # a line for each parameter
        model.init_weights()
        logging.disable(logging.NOTSET)
    path = folder / 'untrained.safetensors'
    save_tensors(path, model.state_dict())
    return path, model.image_encoder.num_groups


def table(reports: dict[str, Any], groups: int) -> str:
    """The comparison as text, in percent; groups as a number."""
    rows = [(name, report['metrics'], '') for name, report in reports.items()]
    rows.append((f'grid of {groups}', reports['trained']['metrics'], 'grid_'))
    width = max(len(name) for name, _, _ in rows)
    lines = [' ' * width + ''.join(f'{column:>10}' for column in COLUMNS)]
    for name, metrics, prefix in rows:
        cells = [
            '-' if prefix and '{}' not in key else cell(column, metrics.get(key.format(prefix)))
            for column, key in COLUMNS.items()
        ]
        lines.append(f'{name:{width}}' + ''.join(f'{text:>10}' for text in cells))
    return '\n'.join(lines)


def cell(column: str, value: float | None) -> str:
    if value is None:
        return '-'
    return f'{value:.1f}' if column == 'used' else f'{100 * value:.1f}'


if __name__ == '__main__':
    sys.exit(run_tool(main))
