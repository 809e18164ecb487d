"""Look at, verify or import region stores.

    python tools/region_store.py info data/shapes/regions_train
    python tools/region_store.py verify data/lvis_v1/regions_train [--sample 0.05]
    python tools/region_store.py import-detpro EMBEDDINGS.zip PROPOSALS.pkl ANNOTATIONS.json STORE \\
        --clip data/weights/clip_vit_b32
    python tools/region_store.py import-oadp FOLDER ANNOTATIONS.json STORE \\
        --clip ViT-B-32-quickgelu ViT-B-32.pt
"""

import argparse
import json
from collections.abc import Sequence

from ...console import SEED, Parser, say, share


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line and run the command."""
    parser = Parser(prog=program, description='Look at, verify or import region stores.')
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('info', help='print what a store holds and how it was made')
    command.add_argument('store')
    command.set_defaults(run=show)
    command = commands.add_parser('verify', help='recompute the checksums and name every bad shard')
    command.add_argument('store')
    command.add_argument('--sample', type=share, default=1.0, help='share of the shards, drawn at random')
    command.add_argument('--seed', type=SEED, default=0, help='of the draw')
    command.set_defaults(run=verify)
    command = commands.add_parser(
        'import-detpro', help="DetPro's embeddings and the proposals they belong to"
    )
    command.add_argument('embeddings', help='zip or folder of 000000000139.pth ...')
    command.add_argument('proposals', help='pickle with one array of boxes per image')
    _add_import_arguments(command)
    command.add_argument(
        '--order',
        choices=('file', 'id'),
        default='file',
        help="order of the images in the pickle: the annotation file's, or by rising id",
    )
    command.set_defaults(run=import_from_detpro)
    command = commands.add_parser('import-oadp', help="OADP's files of embeddings, boxes and objectness")
    command.add_argument('embeddings', help='folder or zip of 000000000139.pth ...')
    _add_import_arguments(command)
    command.set_defaults(run=import_from_oadp)
    args = parser.parse_args(argv)
    args.run(args)


def _add_import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument('annotations', help='COCO or LVIS annotation file of these images')
    command.add_argument('store', help='folder of the new store')
    command.add_argument(
        '--clip',
        nargs='+',
        metavar=('MODEL', 'PRETRAINED'),
        required=True,
        help='the CLIP that made the embeddings, a folder or an architecture and its weights; its '
        'fingerprint is stored and compared later',
    )


def show(args: argparse.Namespace) -> None:
    """Print the header, the counts and the size."""
    from ....regions.store import RegionStore

    store = RegionStore(args.store)
    shards = store.manifest['shards']
    size = sum(entry['bytes'] for entry in shards)
    say(json.dumps(store.header, indent=2, ensure_ascii=False, sort_keys=True))
    say(f'{len(store)} images, {store.num_rows} regions, {len(shards)} shards, {size / 1e6:.1f} MB')


def verify(args: argparse.Namespace) -> None:
    """Check the shards with a progress bar; fail with the list of the bad ones."""
    from tqdm import tqdm

    from ....regions.store import RegionStore

    store = RegionStore(args.store)
    checks = store.verify_shards(args.sample, args.seed)
    expected = max(1, round(args.sample * len(store.manifest['shards'])))
    results = list(tqdm(checks, total=expected, unit='shard'))
    problems = [problem for _, problem in results if problem]
    if problems:
        raise ValueError(f'{len(problems)} of {len(results)} shards are bad: ' + '; '.join(problems))
    say(f'{args.store}: {len(results)} of {len(store.manifest["shards"])} shards checked, all intact')


def import_from_detpro(args: argparse.Namespace) -> None:
    """Join a proposal pickle and embeddings into a store."""
    from tqdm import tqdm

    from ....datasets.annotations import read_annotations
    from ....regions.importers import import_detpro
    from ....regions.proposal_files import read_proposals

    image_ids = [image['id'] for image in read_annotations(args.annotations)['images']]
    listed = sorted(image_ids) if args.order == 'id' else image_ids
    proposals = read_proposals(args.proposals, listed)
    fingerprint = _fingerprint(args.clip)
    with tqdm(total=len(image_ids), unit='img') as bar:
        manifest = import_detpro(args.store, args.embeddings, proposals, image_ids, fingerprint, bar.update)
    _report(args.store, manifest)


def import_from_oadp(args: argparse.Namespace) -> None:
    """Bring OADP's files into a store."""
    from tqdm import tqdm

    from ....datasets.annotations import read_annotations
    from ....regions.importers import import_oadp

    image_ids = [image['id'] for image in read_annotations(args.annotations)['images']]
    fingerprint = _fingerprint(args.clip)
    with tqdm(total=len(image_ids), unit='img') as bar:
        manifest = import_oadp(args.store, args.embeddings, image_ids, fingerprint, bar.update)
    _report(args.store, manifest)


def _fingerprint(names: Sequence[str]) -> str:
    from ....encoders.loading import load_clip

    if len(names) > 2:
        raise ValueError(f'--clip takes a model and its weights, got {" ".join(names)}; put the option last')
    return load_clip(*names).fingerprint


def _report(store: str, manifest: dict | None) -> None:
    if manifest is not None:
        say(f'{store} is complete: {manifest["image_count"]} images, {manifest["rows"]} regions')
