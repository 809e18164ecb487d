"""Let a trained model ground the phrases of captions, and write what it finds as training data (ODVG).

    python tools/pseudo_label.py configs/glip_shapes_student.py [--limit 100] [--device cuda]
        [--cfg-options KEY=VALUE ...]
    torchrun --nproc-per-node 8 tools/pseudo_label.py configs/glip_shapes_student.py

Kill it whenever you like: the same command continues, with any number of processes.
"""

import argparse
import sys
from collections.abc import Sequence

from ovd.cli.console import COUNT, KeyValue, run_tool
from ovd.devices import find_device, process_rank


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, label the captions, say what was found."""
    parser = argparse.ArgumentParser(description='Ground the phrases of captions with a trained model.')
    parser.add_argument('config', help='a config with a pseudo_labels section')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValue, default={}, metavar='KEY=VALUE')
    parser.add_argument(
        '--limit',
        type=COUNT,
        help='only the first images, for a trial: with pseudo_labels.out=... in --cfg-options',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1; default: the GPU of this process, if any')
    parser.add_argument(
        '--workers', type=int, help='threads that load images ahead; default 4 on a GPU, else 0'
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm'), help='default: pytorch under torchrun'
    )
    args = parser.parse_args(argv)
    rank, world_size, local_rank = process_rank(args.launcher)

    from mmdet.utils import register_all_modules
    from tqdm import tqdm

    from ovd.config import check_needs, load_config
    from ovd.pseudo_labels.labelling import PseudoLabelling

    if args.workers is not None and args.workers < 0:
        raise ValueError(f'--workers is {args.workers}, expected 0 or more')
    config = load_config(args.config, args.cfg_options)
    section = config.get('pseudo_labels')
    # What training needs of the labels is not needed to make them, nor to try in another file.
    made_here = [(each.get('pseudo_labels') or {}).get('out') for each in (config, load_config(args.config))]
    check_needs(config, 'demo', made_here)
    register_all_modules(init_default_scope=True)
    device = find_device(args.device, local_rank)
    workers = args.workers if args.workers is not None else (0 if device == 'cpu' else 4)
    labelling = PseudoLabelling(section, device, args.limit)
    pending = labelling.start(rank, world_size)
    if rank == 0:
        print(
            f'{labelling.out}: {labelling.num_images} images in {len(labelling.plan)} parts, '
            f'{len(pending)} of them for this process',
            flush=True,
        )
    images = sum(len(labelling.plan[index]) for index in pending)
    with tqdm(total=images, desc='labelling', unit='img', disable=rank > 0, smoothing=0.05) as bar:
        boxes = 0

        def on_image(count: int) -> None:
            nonlocal boxes
            boxes += count
            bar.set_postfix_str(f'{boxes} boxes', refresh=False)
            bar.update()

        manifest = labelling.run(pending, on_image, workers)
    if manifest is not None:
        counts = ', '.join(f'{count} {what.replace("_", " ")}' for what, count in manifest['counts'].items())
        print(f'{labelling.out} is complete: {counts}; provenance is in {labelling.manifest_path}')
    elif rank == 0:
        print(f'rank 0 is done, {labelling.num_finished} of {len(labelling.plan)} parts are written by now')


if __name__ == '__main__':
    sys.exit(run_tool(main))
