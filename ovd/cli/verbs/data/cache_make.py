"""Embed the region proposals of a data set with CLIP, once, into a RegionStore.

    python tools/cache_clip_regions.py configs/vild_shapes.py [--limit N] [--device cuda] [--cfg-options ...]
    torchrun --nproc-per-node 8 tools/cache_clip_regions.py configs/vild_r50_lvis.py

Kill it whenever you like: the same command continues, with any number of processes, to the same bytes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ....devices import find_device, process_rank
from ...console import COUNT, KeyValue, Parser, say


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line, say what will be written, fill the store."""
    parser = Parser(prog=program, description='Embed region proposals with CLIP into a region store.')
    parser.add_argument('config', help='a config with a region_cache section')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValue, default={}, metavar='KEY=VALUE')
    parser.add_argument('--limit', type=COUNT, help='only the first images; a later run extends the store')
    parser.add_argument('--device', help='cpu, cuda, cuda:1; default: the GPU of this process, if any')
    parser.add_argument(
        '--workers', type=int, help='threads that decode images ahead; default 4 on a GPU, else 0'
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm'), help='default: pytorch under torchrun'
    )
    args = parser.parse_args(argv)
    rank, world_size, local_rank = process_rank(args.launcher)

    from tqdm import tqdm

    from ....caching.clip_regions import RegionCaching
    from ....config import check_needs, load_config

    if args.workers is not None and args.workers < 0:
        raise ValueError(f'--workers is {args.workers}, expected 0 or more')
    config = load_config(args.config, args.cfg_options)
    check_needs(config, 'train')
    device = find_device(args.device, local_rank)
    workers = args.workers if args.workers is not None else (0 if device == 'cpu' else 4)
    caching = RegionCaching(config.get('region_cache'), device, args.limit)
    estimate = caching.estimate()
    writer, pending = caching.start(rank, world_size)
    if rank == 0:
        say(
            f'{caching.store}: {estimate.images} images, at most {estimate.rows} regions of '
            f'{len(caching.policy.scales)} crops and {readable_size(estimate.num_bytes)}; '
            f'{writer.num_finished} of {writer.num_shards} shards are done'
        )
        warn_about_space(caching.store, estimate.num_bytes, writer.num_finished / writer.num_shards)

    name = 'caching' if world_size == 1 else f'caching (rank 0 of {world_size})'
    with tqdm(total=len(pending), desc=name, unit='img', disable=rank > 0, smoothing=0.05) as bar:
        crops = 0

        def on_image(count: int) -> None:
            nonlocal crops
            crops += count
            bar.set_postfix_str(f'{crops / max(bar.format_dict["elapsed"], 1e-3):.0f} crops/s', refresh=False)
            bar.update()

        manifest = caching.run(writer, pending, on_image, workers)
    if manifest is not None and not manifest['rows']:
        raise ValueError(
            f'{caching.store}: 0 regions, the proposals left every image empty; see region_cache.proposals: '
            'top, nms, min_side, and the boxes of its file'
        )
    if manifest is not None:
        say(f'{caching.store} is complete: {manifest["image_count"]} images, {manifest["rows"]} regions')
    elif rank == 0:
        say(f'rank 0 is done, {writer.num_finished} of {writer.num_shards} shards are written by now')


def readable_size(num_bytes: int) -> str:
    """For example ``31.2 GB`` (powers of ten)."""
    value, unit = float(num_bytes), 'B'
    for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
        if value < 1000 or unit == 'TB':
            break
        value /= 1000
    return f'{value:.1f} {unit}'


def warn_about_space(store: Path, num_bytes: int, done: float) -> None:
    """Say so on stderr when the disk may be too small for the rest."""
    free = shutil.disk_usage(store).free
    if (1 - done) * num_bytes > free:
        say(
            f'warning: {readable_size(free)} free at {store}; if the disk fills up, finished shards are '
            'kept and the same command continues',
            err=True,
        )
