"""Speed ratios against a peer in the same run; absolute times are printed only to show the size of a case.

    python benchmarks/speed.py                  # all cases, a few minutes on two cores
    python benchmarks/speed.py step store       # some of them
    python benchmarks/speed.py --full --device cuda

Quick mode shrinks images, not models. Budgets are the bars of the table; a bar missed on a busy machine says
little, run the case again with more --rounds.
"""

import argparse
import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from groupvit_peer import measure_groupvit
from PIL import Image
from predict_peer import compare_predict
from timing import CLOCKS, Figure, compare, interleave, paired_ratio, table, written

import ovd  # noqa: F401  (before any host is imported)
from ovd.cli.console import run_tool
from ovd.files import write_json

EMBED_DIM = 512
Case = Callable[[argparse.Namespace], list[Figure]]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('cases', nargs='*', metavar='CASE', help=f'default: all of {", ".join(CASES)}')
    parser.add_argument(
        '--rounds', type=int, default=5, help='repetitions of each case; default: %(default)s'
    )
    parser.add_argument(
        '--full', action='store_true', help='real image sizes; minutes per round without a GPU'
    )
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    parser.add_argument('--workers', type=int, default=2, help='threads of `predict`; default: %(default)s')
    parser.add_argument(
        '--clock',
        choices=list(CLOCKS),
        default='wall',
        help='cpu: seconds this process computed, for a busy machine with OMP_NUM_THREADS=1',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    unknown = [case for case in args.cases if case not in CASES]
    if unknown:
        raise ValueError(f'unknown case {unknown[0]!r}, expected some of {", ".join(CASES)}')
    if args.rounds < 1:
        raise ValueError(f'--rounds must be at least 1, got {args.rounds}')
    if args.clock == 'cpu' and args.device != 'cpu':
        raise ValueError(f'--clock cpu cannot time {args.device}')
    torch.manual_seed(0)
    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    print(f'{platform.machine()}, {os.cpu_count()} cores, {versions}')
    threads = f'{torch.get_num_threads()} threads'
    print(f'device {args.device}, {threads}, {args.clock} clock, medians of {args.rounds} rounds\n')
    figures: list[Figure] = []
    for case in args.cases or CASES:
        print(f'{case} ...', file=sys.stderr)
        figures += CASES[case](args)
    print(table(figures))


# --- start-up -----------------------------------------------------------------------------------------------


def measure_import(args: argparse.Namespace) -> list[Figure]:
    """What ``import ovd`` adds to an empty Python, and the time to a tool's help text."""

    def run(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    demo = str(Path(__file__).resolve().parents[1] / 'tools' / 'demo.py')
    calls = {
        'empty': run('-c', 'pass'),
        'import': run('-c', 'import ovd'),
        'help': run(demo, '--help'),
        'command': run('-m', 'ovd', '--help'),
    }
    seconds = {name: median(times) for name, times in interleave(calls, args.rounds).items()}
    empty = written(seconds['empty'])
    added = seconds['import'] - seconds['empty']
    return [
        Figure('import ovd, beyond an empty Python', written(seconds['import']), empty, added, 's', 0.3),
        Figure('tools/demo.py --help', written(seconds['help']), empty, seconds['help'], 's', 1.0),
        Figure('ovd --help', written(seconds['command']), empty, seconds['command'], 's', 0.3),
    ]


# --- training -----------------------------------------------------------------------------------------------


def measure_step(args: argparse.Namespace) -> list[Figure]:
    """A training step of ViLD with cached region embeddings against mmdet's Mask R-CNN, trunks equal."""
    size, images = ((800, 1216), 2) if args.full else ((384, 512), 1)
    figures = []
    for title, convs, fcs in (('2 fc (mmdet stock)', 0, 2), ('4 conv + 2 fc (ViLD)', 4, 2)):
        peer = build_mask_rcnn(convs, fcs).to(args.device).train()
        ours = build_vild(convs, fcs).to(args.device).train()
        share_weights(ours, peer)
        figure = compare(
            f'training step, {title}, {images} x {size[0]} x {size[1]}, 512 + 128 regions',
            step(ours, training_batch(size, images)),
            step(peer, training_batch(size, images)),
            args.rounds,
            args.clock,
            bar=1.15,
        )
        figures.append(figure)
    return figures


def step(model: Any, batch: dict[str, Any]) -> Callable[[], object]:
    """A training step that leaves the weights where they are."""
    from mmengine.optim import OptimWrapper

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OptimWrapper(torch.optim.SGD(parameters, lr=0.0, momentum=0.9))
    return lambda: model.train_step(batch, optimizer)


def training_batch(size: tuple[int, int], images: int, regions: int = 128) -> dict[str, Any]:
    """Random images with 8 objects and ``regions`` cached embeddings each; equal for every call."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.structures import InstanceData

    shapes = [(3, *size)] * images
    batch: dict[str, Any] = demo_mm_inputs(
        images, shapes, num_items=[8] * images, num_classes=80, with_mask=True
    )
    generator = torch.Generator().manual_seed(0)
    corner = torch.tensor([size[1], size[0]]) / 2
    for sample in batch['data_samples']:
        start = torch.rand(regions, 2, generator=generator) * corner
        extent = (torch.rand(regions, 2, generator=generator) * 0.9 + 0.1) * corner
        embeddings = torch.randn(regions, EMBED_DIM, generator=generator)
        sample.region_instances = InstanceData(
            bboxes=torch.cat([start, start + extent], dim=1),
            embeddings=torch.nn.functional.normalize(embeddings, dim=1),
            valid=torch.ones(regions, dtype=torch.bool),
        )
    return batch


def mask_rcnn_config() -> Any:
    """mmdet's own Mask R-CNN R50-FPN, without pretrained weights."""
    import mmdet
    from mmengine.config import Config

    folder = Path(mmdet.__file__).parent / '.mim' / 'configs' / '_base_' / 'models'
    config = Config.fromfile(folder / 'mask-rcnn_r50_fpn.py').model
    config.backbone.init_cfg = None
    return config


def build(config: Any) -> Any:
    from mmengine.registry import DefaultScope

    from ovd.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config)


def build_mask_rcnn(convs: int, fcs: int) -> Any:
    """mmdet's Mask R-CNN with this many shared layers in its box head."""
    config = mask_rcnn_config()
    head = config.roi_head.bbox_head
    head.update(type='ConvFCBBoxHead', num_shared_convs=convs, num_shared_fcs=fcs)
    return build(config)


def build_vild(convs: int, fcs: int, classes: int = 80, score_threshold: float | None = None) -> Any:
    """The same detector with ViLD's heads, and random class vectors."""
    config = vild_config(convs, fcs)
    if score_threshold is not None:
        config.test_cfg.rcnn.update(score_thr=score_threshold, max_per_img=300)
    model = build(config)
    model.set_vocabulary(random_text(classes))
    return model


def vild_config(convs: int, fcs: int) -> Any:
    """Mask R-CNN's config with ViLD's heads."""
    config = mask_rcnn_config()
    config.type = 'ovd.ViLD'
    config.roi_head.type = 'ovd.ViLDRoIHead'
    config.roi_head.bbox_head = {
        'type': 'ovd.ViLDBBoxHead',
        'mode': 'vild',
        'trunk': {'num_convs': convs, 'num_fcs': fcs},
        'embed_dim': EMBED_DIM,
        'bbox_coder': config.roi_head.bbox_head.bbox_coder,
        'loss_cls': config.roi_head.bbox_head.loss_cls,
        'loss_bbox': config.roi_head.bbox_head.loss_bbox,
    }
    config.roi_head.mask_head.update(num_classes=1, class_agnostic=True)
    return config


def random_text(classes: int) -> Any:
    """Class vectors of nonsense words."""
    from ovd.encoders.text_embeddings import TextEmbeddings
    from ovd.text.vocabulary import Vocabulary

    vectors = torch.randn(classes, EMBED_DIM, generator=torch.Generator().manual_seed(classes))
    return TextEmbeddings(
        embeddings=torch.nn.functional.normalize(vectors, dim=1),
        vocabulary=Vocabulary([f'thing {index}' for index in range(classes)]),
        templates=('{}',),
        encoder_fingerprint='',
    )


def share_weights(model: torch.nn.Module, source: torch.nn.Module) -> None:
    """Copy every weight that both have, so that both see the same proposals."""
    wanted = model.state_dict()
    common = {
        key: value
        for key, value in source.state_dict().items()
        if key in wanted and value.shape == wanted[key].shape
    }
    model.load_state_dict(common, strict=False)


# --- pictures -----------------------------------------------------------------------------------------------


def measure_predict(args: argparse.Namespace) -> list[Figure]:
    """All of ``ovd predict`` against the bare model, ViLD's detector with an R50."""
    model = build_vild(4, 2)
    return [compare_predict(model, vild_config(4, 2), random_text(3), args)]


# --- vocabulary ---------------------------------------------------------------------------------------------


def measure_classes(args: argparse.Namespace) -> list[Figure]:
    """Time to an answer as the vocabulary grows, threshold and number of detections as for LVIS."""
    size = (800, 1216) if args.full else (384, 512)
    model = build_vild(4, 2, score_threshold=1e-4).to(args.device).eval()
    batch = training_batch(size, 1)
    sizes = (1, 80, 1203, 21000)
    texts = {classes: random_text(classes) for classes in sizes}

    def ask(classes: int) -> Callable[[], object]:
        def call() -> None:
            model.set_vocabulary(texts[classes])
            with torch.no_grad():
                model.test_step(batch)

        return call

    seconds = interleave({str(classes): ask(classes) for classes in sizes}, args.rounds, args.clock)
    return [
        Figure(
            f'answer to {classes} words against 80 words, {size[0]} x {size[1]}',
            written(median(seconds[str(classes)])),
            written(median(seconds['80'])),
            paired_ratio(seconds[str(classes)], seconds['80']),
            bar=1.1 if classes == 1203 else None,
        )
        for classes in sizes
        if classes != 80
    ]


def measure_switch(args: argparse.Namespace) -> list[Figure]:
    """Changing the words: between known vocabularies, and to 80 new words through a ViT-B/32 text tower."""
    model = build(mask_rcnn_with_tower()).to(args.device).eval()
    known = [[f'{kind} {index}' for index in range(80)] for kind in ('first', 'second')]
    for words in known:
        model.set_vocabulary(words)
    times = interleave(
        {kind: partial(model.set_vocabulary, words) for kind, words in zip('ab', known)},
        20 * args.rounds,
        args.clock,
    )
    numbers = itertools.count()

    def ask_new(templates: str) -> Callable[[], object]:
        def call() -> None:
            model.set_vocabulary([f'word {next(numbers)}' for _ in range(80)], templates)

        return call

    with scratch_folder() as folder, mock.patch.dict(os.environ, OVD_CACHE=str(folder)):
        single = median(interleave({'new': ask_new('single')}, args.rounds, args.clock)['new'])
        ensemble = interleave({'new': ask_new('vild63')}, int(args.full), args.clock, warmup=0)['new']
    swap = median(times['a'] + times['b'])
    figures = [
        Figure('switch to 80 words asked for before', written(swap), '', 1e3 * swap, 'ms', 1.0),
        Figure('switch to 80 new words, ViT-B/32, one template', written(single), '', single, 's', 2.0),
    ]
    title = 'switch to 80 new words, ViT-B/32, 63 templates'
    return figures + [Figure(title, written(seconds), '', seconds, 's') for seconds in ensemble]


def mask_rcnn_with_tower() -> Any:
    """A small ViLD whose words come from a ViT-B/32 text tower with random weights."""
    config = mask_rcnn_config()
    config.type = 'ovd.ViLD'
    config.roi_head.type = 'ovd.ViLDRoIHead'
    config.roi_head.bbox_head = {'type': 'ovd.ViLDBBoxHead', 'mode': 'vild_text', 'embed_dim': EMBED_DIM}
    config.roi_head.mask_head.update(num_classes=1, class_agnostic=True)
    config.text = {
        'vocabulary': ['thing'],
        'templates': 'single',
        'encoder': {'model': 'ViT-B-32', 'pretrained': 'random:0'},
    }
    return config


# --- region embeddings --------------------------------------------------------------------------------------


def measure_store(args: argparse.Namespace) -> list[Figure]:
    """Reading 300 rows of an image from a region store against slices of raw memory-mapped files."""
    from ovd.regions.store import RegionStore, RegionStoreWriter

    images, rows = (2000, 300) if args.full else (200, 300)
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((images * rows, EMBED_DIM), dtype=np.float32).astype(np.float16)
    boxes = np.sort(random.random((images * rows, 4), dtype=np.float32) * 500, axis=1)[:, [0, 1, 2, 3]]
    scores = random.random(images * rows, dtype=np.float32)
    order = random.permutation(images)
    with scratch_folder() as folder:
        header = {
            'clip_fingerprint': '0' * 16,
            'embed_dim': EMBED_DIM,
            'max_regions': rows,
            'crops': {},
            'proposals': {},
        }
        writer = RegionStoreWriter(folder / 'store', header)
        for image in writer.pending(list(range(images))):
            part = slice(image * rows, (image + 1) * rows)
            writer.add(image, boxes[part], scores[part], embeddings[part])
        writer.close()
        raw = {}
        for name, array in (('embeddings', embeddings), ('boxes', boxes), ('scores', scores)):
            raw[name] = np.memmap(folder / name, array.dtype, 'w+', shape=array.shape)
            raw[name][:] = array
        store = RegionStore(folder / 'store')

        def read_store() -> None:
            for image in order.tolist():
                regions = store.read(image)
                _ = np.array(regions.boxes), np.array(regions.scores), np.array(regions.embeddings)

        def read_raw() -> None:
            for image in order.tolist():
                part = slice(image * rows, (image + 1) * rows)
                _ = (
                    np.array(raw['boxes'][part]),
                    np.array(raw['scores'][part]),
                    np.array(raw['embeddings'][part]),
                )

        seconds = interleave({'ours': read_store, 'peer': read_raw}, 4 * args.rounds, args.clock)
    rates = {name: images / median(times) for name, times in seconds.items()}
    return [
        Figure(
            f'images read per second, {rows} rows of {EMBED_DIM}',
            f'{rates["ours"]:.3g} /s',
            f'{rates["peer"]:.3g} /s',
            paired_ratio(seconds['peer'], seconds['ours']),
            bar=0.8,
            at_least=True,
        )
    ]


def measure_caching(args: argparse.Namespace) -> list[Figure]:
    """Files and boxes to a finished store, against the bare ViT-B/32 forward on the same crops."""
    from ovd.caching.clip_regions import RegionCaching
    from ovd.datasets.images import read_image
    from ovd.regions.crops import crop_regions

    images, regions = (8, 300) if args.full else (2, 32)
    with scratch_folder() as folder:
        caching = RegionCaching(write_region_task(folder, images, regions), args.device)
        encoder: Any = caching.encoder
        stores = (folder / f'store_{number}' for number in itertools.count())

        def cache() -> None:
            caching.store = next(stores)
            caching.run(*caching.start())

        pixels = []
        with np.load(folder / 'proposals.npz') as proposals:
            for image, boxes in zip(caching.images, np.split(proposals['boxes'], images)):
                array = torch.from_numpy(read_image(image.path)).to(args.device).permute(2, 0, 1)
                crops = crop_regions(array, torch.from_numpy(boxes), encoder.image_size, caching.policy)
                pixels.append(encoder.normalize(crops))
        batches = torch.cat(pixels).split(caching.batch_size)

        def forward() -> None:
            with torch.inference_mode():
                for batch in batches:
                    encoder.encode(batch)

        count = sum(len(batch) for batch in batches)
        title = f'caching {count} crops of {images} images, ViT-B/32'
        return [compare(title, cache, forward, args.rounds, args.clock, bar=1.2)]


def write_region_task(folder: Path, images: int, regions: int) -> dict[str, Any]:
    """JPEG files of 480 x 640 with boxes; the ``region_cache`` section that embeds them."""
    random = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for index in range(images):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / 'images' / f'{index}.jpg')
    listed = [{'id': i, 'file_name': f'{i}.jpg', 'height': 480, 'width': 640} for i in range(images)]
    write_json(folder / 'images.json', {'images': listed, 'annotations': [], 'categories': []})
    start = random.random((images * regions, 2)) * (320, 240)
    extent = random.random((images * regions, 2)) * (280, 200) + 40
    np.savez(
        folder / 'proposals.npz',
        image_ids=np.arange(images),
        counts=np.full(images, regions),
        boxes=np.concatenate([start, start + extent], axis=1).astype(np.float32),
        scores=np.ones(images * regions, np.float32),
    )
    return {
        'store': str(folder / 'store'),
        'dataset': {'ann_file': str(folder / 'images.json'), 'images': str(folder / 'images')},
        'image_encoder': {'model': 'ViT-B-32', 'pretrained': 'random:0'},
        'proposals': {'file': str(folder / 'proposals.npz'), 'nms': None},
        'batch_size': 64,
    }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


CASES: dict[str, Case] = {
    'import': measure_import,
    'step': measure_step,
    'classes': measure_classes,
    'switch': measure_switch,
    'caching': measure_caching,
    'store': measure_store,
    'groupvit': measure_groupvit,
    'predict': measure_predict,
}

if __name__ == '__main__':
    sys.exit(run_tool(main))
