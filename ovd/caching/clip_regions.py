"""Cache CLIP embeddings of region proposals: images + boxes -> crops -> image encoder -> RegionStore.

Every image is decoded once. A batch may hold the crops of many images, but only of one shard, and its size is
a multiple of 32: the bits of a shard do not depend on other shards, interruptions or the number of ranks.

Reading order: RegionCaching (opens a config section), cache_regions (the inner loop), read_cache_images.
"""

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.values import COUNT, NOT_NEGATIVE, SHARE, describe
from ..datasets.annotations import ClassSplit, box_problem, file_name_of, match_categories, read_annotations
from ..datasets.images import read_image
from ..encoders.image_encoder import ImageEncoder
from ..models.proposals import Proposals, build_proposals
from ..regions.crops import CropPolicy, crop_regions, join_scales
from ..regions.embedding import BATCH_MULTIPLE, RegionEncoder, batches, encode_crops
from ..regions.store import RegionStoreWriter
from ..text.vocabulary import Vocabulary
from ..threads import map_ahead
from ..version import __version__

_SECTION = ('store', 'dataset', 'image_encoder', 'crops', 'proposals', 'batch_size', 'images_per_shard')
_SUBSECTIONS = {
    'dataset': ('ann_file', 'images', 'vocabulary', 'split', 'exif', 'path_parts'),
    'image_encoder': ('model', 'pretrained', 'dtype', 'channels_last'),
    'crops': ('mode', 'scales', 'resize', 'outside', 'rounding'),
    'proposals': ('file', 'config', 'checkpoint', 'ground_truth', 'top', 'nms', 'min_side'),
}
_REQUIRED = {'dataset': ('ann_file', 'images'), 'image_encoder': ('model',)}
_PROPOSAL_LIMITS = {'top': COUNT, 'nms': SHARE, 'min_side': NOT_NEGATIVE}
_IMAGES_PER_WINDOW = 16
ProposalSource = Callable[[Sequence[tuple[int, np.ndarray]]], list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class CacheImage:
    """One image of the data set; ``size`` is (height, width) of the annotation file."""

    image_id: int
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class SizeEstimate:
    """Upper bounds of the size of a store."""

    images: int
    rows: int
    num_bytes: int


class RegionCaching:
    """Opens a ``region_cache`` section of a config; then call ``start`` and ``run``.

    Args:
        section: ``store`` (folder), ``dataset`` (``ann_file``, ``images``: folder; optional ``vocabulary``,
            ``split``: only ground-truth boxes of base classes are used; ``exif``, ``path_parts``),
            ``image_encoder`` (arguments of ``ImageEncoder``), ``crops`` (``CropPolicy``), ``proposals``
            (``file``, or ``config`` and ``checkpoint``; ``ground_truth``, ``top``, ``nms``, ``min_side``),
            ``batch_size`` crops per forward, ``images_per_shard``.
        device: of the encoder, the crops and the proposal detector.
        limit: number of images, from the first on; a later run without it extends the store.
    Raises:
        FileNotFoundError, ValueError: missing or unknown keys and files of the section, all in one message.
    """

    def __init__(self, section: Mapping[str, Any], device: str = 'cpu', limit: int | None = None):
        check_section(section)
        dataset = section['dataset']
        images, ground_truth = read_cache_images(
            dataset, with_boxes=bool(section['proposals'].get('ground_truth', False))
        )
        self.images = images[:limit]
        self.exif = bool(dataset.get('exif', True))
        self.store = Path(section['store'])
        self.policy = CropPolicy(**section.get('crops') or {})
        self.batch_size = int(section.get('batch_size', 256))
        self.proposals = build_proposals(
            section['proposals'], [image.image_id for image in images], ground_truth, device
        )
        self.device = torch.device(device)
        self.encoder: RegionEncoder = ImageEncoder(**{'channels_last': True, **section['image_encoder']}).to(
            self.device
        )
        self.header = region_header(
            self.encoder,
            self.policy,
            self.proposals,
            images_per_shard=section.get('images_per_shard'),
            dtype=section['image_encoder'].get('dtype', 'float32'),
            made_with={
                'code_version': __version__,
                'torch': torch.__version__,
                'device': self.device.type,
                'batch_size': self.batch_size,
                'ann_file': str(dataset['ann_file']),
                'proposals': {
                    key: str(section['proposals'][key])
                    for key in ('file', 'config', 'checkpoint')
                    if section['proposals'].get(key)
                },
            },
        )

    def estimate(self) -> SizeEstimate:
        """Upper bounds of the size of the finished store."""
        rows = self.proposals.max_rows([image.image_id for image in self.images])
        per_row = 2 * self.encoder.embed_dim + 4 * 4 + 4
        return SizeEstimate(len(self.images), rows, rows * per_row + 48 * len(self.images))

    def start(self, rank: int = 0, world_size: int = 1) -> tuple[RegionStoreWriter, list[CacheImage]]:
        """Open the store; return its writer and the images that this rank has to process."""
        writer = RegionStoreWriter(self.store, self.header, rank, world_size)
        by_id = {image.image_id: image for image in self.images}
        return writer, [by_id[image_id] for image_id in writer.pending(list(by_id))]

    def run(
        self,
        writer: RegionStoreWriter,
        pending: Sequence[CacheImage],
        on_image: Callable[[int], None] | None = None,
        workers: int = 0,
    ) -> dict[str, Any] | None:
        """Process the pending images; see ``cache_regions``."""
        return cache_regions(
            pending,
            self.proposals,
            self.encoder,
            self.policy,
            writer,
            batch_size=self.batch_size,
            device=self.device,
            exif=self.exif,
            workers=workers,
            on_image=on_image,
        )


def region_header(
    encoder: RegionEncoder,
    policy: CropPolicy,
    proposals: Proposals,
    images_per_shard: int | None = None,
    dtype: str = 'float32',
    made_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Header of a store: everything its rows depend on, and ``made_with`` for information."""
    layout = {} if images_per_shard is None else {'images_per_shard': int(images_per_shard)}
    source = proposals.describe()
    return {
        'clip_fingerprint': encoder.fingerprint,
        'embed_dim': encoder.embed_dim,
        'tower_dtype': dtype,
        'crops': policy.to_dict(),
        'crops_hash': policy.hash,
        'proposals': source,
        'max_regions': proposals.max_regions,
        'made_with': dict(made_with or {}),
        **layout,
    }


def cache_regions(
    images: Sequence[CacheImage],
    proposals: ProposalSource,
    encoder: RegionEncoder,
    policy: CropPolicy,
    writer: RegionStoreWriter,
    batch_size: int = 256,
    device: torch.device | str = 'cpu',
    exif: bool = True,
    workers: int = 0,
    on_image: Callable[[int], None] | None = None,
) -> dict[str, Any] | None:
    """Embed the proposals of the pending images and write their shards.

    Args:
        images: the writer's pending images, in its order.
        proposals: list of (image id, uint8 [H, W, 3]) -> boxes [m, 4] in original pixels and scores [m] of
            each; see ``Proposals``.
        encoder: CLIP image encoder, on ``device``.
        policy: rules of the crops.
        writer: store to write to.
        batch_size: crops per forward; rounded up to a multiple of 32.
        device: where images are cropped.
        exif: see ``read_image``.
        workers: number of decoding threads; 0 decodes in the main thread, which is best on a CPU.
        on_image: called with the number of crops of each image, for a progress bar.
    Returns:
        the manifest, or None while other ranks have shards to write.
    Raises:
        ValueError, FileNotFoundError: an image is missing, damaged or of another size (it is named).
        OSError: the disk is full; finished shards are kept, and the next run continues.
    """
    batch_size = -(-batch_size // BATCH_MULTIPLE) * BATCH_MULTIPLE
    with writer:
        decoded = map_ahead(lambda image: (image, _decode(image, exif)), images, workers)
        for _, shard in itertools.groupby(decoded, key=lambda pair: writer.shard_of(pair[0].image_id)):
            regions: list[tuple[int, Tensor, Tensor]] = []
            crops = _shard_crops(shard, proposals, encoder, policy, torch.device(device), regions, on_image)
            features = [encode_crops(encoder, batch) for batch in batches(crops, batch_size)]
            joined = join_scales(torch.cat(features), len(policy.scales)).half().cpu()
            counts = [len(scores) for _, _, scores in regions]
            for (image_id, boxes, scores), rows in zip(regions, joined.split(counts)):
                writer.add(image_id, boxes, scores, rows)
        return writer.close()


def _shard_crops(
    images: Iterator[tuple[CacheImage, np.ndarray]],
    proposals: ProposalSource,
    encoder: RegionEncoder,
    policy: CropPolicy,
    device: torch.device,
    regions: list[tuple[int, Tensor, Tensor]],
    on_image: Callable[[int], None] | None,
) -> Iterator[Tensor]:
    """Yield the crops [m * S, 3, size, size] of each image; append its id, boxes, scores to ``regions``."""
    while window := list(itertools.islice(images, _IMAGES_PER_WINDOW)):
        found = proposals([(image.image_id, array) for image, array in window])
        for (image, array), (boxes, scores) in zip(window, found):
            regions.append((image.image_id, boxes, scores))
            pixels = torch.from_numpy(array).to(device).permute(2, 0, 1)
            try:
                crops = crop_regions(pixels, boxes, encoder.image_size, policy, encoder.mean)
            except ValueError as error:
                raise ValueError(f'image {image.image_id} ({image.path}): {error}') from None
            yield crops
            if on_image is not None:
                on_image(len(crops))


def _decode(image: CacheImage, exif: bool) -> np.ndarray:
    array = read_image(image.path, exif)
    if array.shape[:2] != image.size:
        height, width = array.shape[:2]
        raise ValueError(
            f'image {image.image_id} ({image.path}) is {width} x {height} pixels, but annotated as '
            f'{image.size[1]} x {image.size[0]}; if the difference is its EXIF orientation, set '
            f'dataset.exif={not exif}'
        )
    return array


def read_cache_images(
    dataset: Mapping[str, Any], with_boxes: bool = False
) -> tuple[list[CacheImage], dict[int, np.ndarray] | None]:
    """Images of an annotation file in its order, and optionally their ground-truth boxes.

    Args:
        dataset: the ``dataset`` section. With a ``vocabulary``, only boxes of its base classes are used.
        with_boxes: return ground-truth boxes, except crowds.
    Returns:
        images, and boxes [n, 4] float32 xyxy by image id, or None.
    """
    content = read_annotations(dataset['ann_file'])
    folder = Path(dataset['images'])
    source, parts = str(dataset['ann_file']), dataset.get('path_parts')
    images = [
        CacheImage(item['id'], folder / file_name_of(item, parts, source), (item['height'], item['width']))
        for item in content['images']
    ]
    if not with_boxes:
        return images, None
    read = {category['id'] for category in content['categories']}
    if dataset.get('vocabulary') is not None:
        vocabulary = Vocabulary.parse(dataset['vocabulary'])
        labels = match_categories(vocabulary, content['categories'])
        base = ClassSplit.resolve(dataset.get('split'), vocabulary, content['categories'], labels).base
        read = {category for category, label in labels.items() if label in base}
    boxes: dict[int, list[list[float]]] = {}
    for annotation in content['annotations']:
        if annotation['category_id'] not in read or annotation.get('iscrowd'):
            continue
        if box_problem(annotation.get('bbox')):
            raise ValueError(
                f'{source}: annotation {annotation["id"]} has the box {annotation.get("bbox")}, expected '
                '[x, y, width, height]'
            )
        x, y, width, height = annotation['bbox']
        boxes.setdefault(annotation['image_id'], []).append([x, y, x + width, y + height])
    return images, {image_id: np.array(rows, dtype=np.float32) for image_id, rows in boxes.items()}


def check_section(section: Any) -> None:
    """Refuse a ``region_cache`` section with unknown or missing keys; a ValueError lists all of them."""
    if not isinstance(section, Mapping):
        raise ValueError('the config has no section region_cache = dict(store=..., dataset=..., ...)')
    problems = key_problems(
        'region_cache', section, _SECTION, ('store', 'dataset', 'image_encoder', 'proposals')
    )
    for name, known in _SUBSECTIONS.items():
        part = section.get(name)
        if isinstance(part, Mapping):
            problems += key_problems(f'region_cache.{name}', part, known, _REQUIRED.get(name, ()))
        elif part is not None:
            problems.append(f'region_cache.{name} is {part!r}, expected a dict')
    for where, part, limits in (
        ('region_cache', section, {'batch_size': COUNT, 'images_per_shard': COUNT}),
        ('region_cache.proposals', section.get('proposals'), _PROPOSAL_LIMITS),
    ):
        for key, limit in limits.items():
            value = part.get(key) if isinstance(part, Mapping) else None
            if value is not None and not limit.contain(value):
                problems.append(describe(f'{where}.{key}', value, limit))
    if problems:
        raise ValueError('; '.join(problems))


def key_problems(
    where: str, section: Mapping[str, Any], known: Sequence[str], required: Sequence[str]
) -> list[str]:
    """What is wrong with the keys of a config section, one message each."""
    problems = []
    for key in section:
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {similar[0]!r}?' if similar else f'known: {", ".join(known)}'
            problems.append(f'{where} has an unknown key {key!r}, {hint}')
    return problems + [f'{where} lacks {key!r}' for key in required if section.get(key) is None]
