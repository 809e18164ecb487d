"""Caption data in every layout, and a model of captions small enough to train through the real tools."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from PIL import Image
from torch import Tensor, nn

from tests.helpers import write_image

CAPTIONS = ['a red star', 'two dogs on a street', 'a bowl of fruit', 'an empty room', 'A MAN, riding a horse']


def write_pictures(folder: Path, count: int) -> list[str]:
    """PNGs ``000000.png`` ...; their names."""
    return [write_image(folder / f'{index:06d}.png', 24, 32, seed=index).name for index in range(count)]


def caption_of(index: int) -> str:
    return f'{CAPTIONS[index % len(CAPTIONS)]} number {index}'


def write_coco_captions(folder: Path, captions: Sequence[Sequence[Any]]) -> Path:
    """``images/`` and a COCO captions file with a list of captions for each image."""
    names = write_pictures(folder / 'images', len(captions))
    content: dict[str, Any] = {'images': [], 'annotations': []}
    for index, (name, texts) in enumerate(zip(names, captions)):
        content['images'].append({'id': 10 + index, 'file_name': name, 'height': 24, 'width': 32})
        for text in texts:
            number = len(content['annotations']) + 1
            content['annotations'].append({'id': number, 'image_id': 10 + index, 'caption': text})
    path = folder / 'captions.json'
    path.write_text(json.dumps(content))
    return path


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> Path:
    delimiter = '\t' if path.suffix == '.tsv' else ','
    with path.open('w', newline='') as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def jpeg(seed: int, size: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(buffer, 'JPEG')
    return buffer.getvalue()


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of named members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int, samples: int) -> str:
    """Shards ``00000.tar`` ... of jpg and txt; their brace pattern."""
    for shard in range(shards):
        members = []
        for index in range(shard * samples, (shard + 1) * samples):
            members.append((f'{index:06d}.jpg', jpeg(index)))
            members.append((f'{index:06d}.txt', caption_of(index).encode()))
        write_shard(folder / f'{shard:05d}.tar', members)
    return f'{folder}/{{00000..{shards - 1:05d}}}.tar'


@MODELS.register_module()
class ToyMatcher(BaseModel):
    """Mean colour against mean token; every pixel, token and place in the batch changes the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Linear(3, 4)
        self.words = nn.Embedding(49408, 4)

    def forward(self, inputs: Sequence[Tensor], data_samples: Sequence[Any], mode: str = 'tensor') -> Any:
        images = nn.functional.normalize(
            self.colour(torch.stack([i.float().mean((1, 2)) for i in inputs]) / 255)
        )
        texts = nn.functional.normalize(
            torch.stack([self.words(sample.token_ids.flatten()).mean(0) for sample in data_samples])
        )
        if mode == 'loss':
            place = torch.arange(1, len(images) + 1) / len(images)
            return {'loss': ((images @ texts.T) * place).sum() / len(images)}
        for sample, image, text in zip(data_samples, images, texts):
            sample.set_field(image, 'image_embeddings')
            sample.set_field(text, 'text_embeddings')
        return list(data_samples)


@HOOKS.register_module()
class ToyRecord(Hook):
    """Writes the names of the samples that each process trains on to ``seen_<rank>.txt``."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        with (Path(runner.work_dir) / f'seen_{runner.rank}.txt').open('a') as file:
            file.writelines(f'{sample.img_path.split("#")[1]}\n' for sample in data_batch['data_samples'])
