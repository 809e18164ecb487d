"""Training data of CLIP: OV-Shapes pictures with captions, and ground-truth regions to classify."""

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ...files import atomic_path, sha256_json, write_json
from ...regions.crops import CropPolicy, crop_regions
from ...registry import DATASETS
from ...shapes.captions import describe, with_article
from ...shapes.scenes import VERSION, CaptionedPicture, draw_pair_crops, draw_portrait
from ...text.vocabulary import Vocabulary
from ..images import read_image


@DATASETS.register_module()
class ShapePairs(Dataset):
    """Square pictures of OV-Shapes with captions, drawn once and cached on disk.

    Half of the pictures are crops of scenes around an object; the others show one shape, two shapes and their
    relation, or only background. A sample has ``inputs``, uint8 [3, size, size], and ``captions``, in three
    styles: nouns; colours and nouns; textures, colours and nouns.

    Args:
        count: number of pictures.
        seed: of the drawing.
        size: side of a picture in pixels.
        cache_dir: folder of the cached pictures; file names depend on all arguments.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: int = 64,
        cache_dir: str | os.PathLike[str] = 'data/shapes/pairs',
    ) -> None:
        self.count, self.seed, self.size = count, seed, size
        self.nouns = Vocabulary.parse('shapes').names
        key = sha256_json([VERSION, self.nouns, count, seed, size])[:12]
        self.stem = Path(cache_dir) / f'pairs_{key}'
        self.metainfo = {'classes': self.nouns}
        if not self.stem.with_suffix('.json').is_file():
            MMLogger.get_current_instance().info(f'drawing {count} pictures with captions into {cache_dir}')
            self._draw()
        self.captions = json.loads(self.stem.with_suffix('.json').read_text(encoding='utf-8'))

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """[N, size, size, 3], memory-mapped."""
        images: NDArray[np.uint8] = np.load(self.stem.with_suffix('.npy'), mmap_mode='r')
        return images

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.from_numpy(self.images[index].transpose(2, 0, 1).copy())
        return {'inputs': image, 'captions': self.captions[index]}

    def _draw(self) -> None:
        crops: list[CaptionedPicture] = []
        for index in range(self.count):
            if len(crops) >= self.count // 2:
                break
            crops += draw_pair_crops(self.nouns, self.seed, index, self.size)
        crops = crops[: self.count // 2]
        # Indices after those of all possible scenes, so that no random stream is used twice.
        portraits = [
            draw_portrait(self.nouns, self.seed, self.count + index, self.size)
            for index in range(self.count - len(crops))
        ]
        pairs = crops + portraits
        with atomic_path(self.stem.with_suffix('.npy')) as temporary:
            with temporary.open('wb') as file:
                np.save(file, np.stack([pair.image for pair in pairs]))
        write_json(self.stem.with_suffix('.json'), [caption_styles(pair) for pair in pairs], indent=None)


def caption_styles(pair: CaptionedPicture) -> list[str]:
    """A noun phrase without article per style, e.g. ['star', 'red star', 'striped red star']."""
    if not pair.shapes:
        return ['empty background'] * 3
    styles = []
    for attributes in (slice(0, 1), slice(0, 2), slice(0, 3)):
        first, *others = (describe(*shape[attributes]) for shape in pair.shapes)
        styles.append(' '.join([first] + [f'{pair.relation} {with_article(other)}' for other in others]))
    return styles


@DATASETS.register_module()
class AnnotatedRegions(Dataset):
    """Crops of the ground-truth boxes of a detection data set; one sample per image with boxes.

    A sample has ``inputs``, uint8 [M, S, 3, size, size] for M boxes at S scales, and ``labels`` [M].

    Args:
        dataset: config of an ``OpenVocabularyDataset``; labels index its vocabulary.
        size: side of a crop in pixels.
        crops: arguments of ``CropPolicy``.
    """

    def __init__(self, dataset: Mapping[str, Any], size: int, crops: Mapping[str, Any] | None = None) -> None:
        self.dataset = DATASETS.build({'pipeline': [], 'test_mode': True, **dataset})
        self.policy = CropPolicy(**(crops or {}))
        self.size = size
        self.metainfo = {**self.dataset.metainfo, 'crops': self.policy.to_dict()}
        self.rows = [i for i in range(len(self.dataset)) if self.dataset.get_data_info(i)['instances']]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        info = self.dataset.get_data_info(self.rows[index])
        image = torch.from_numpy(read_image(info['img_path'])).permute(2, 0, 1)
        boxes = torch.tensor([instance['bbox'] for instance in info['instances']])
        crops = crop_regions(image, boxes, self.size, self.policy)
        labels = torch.tensor([instance['bbox_label'] for instance in info['instances']])
        return {'inputs': crops.unflatten(0, (len(boxes), -1)), 'labels': labels}
