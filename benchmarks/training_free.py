"""Segmentation of OV-Shapes without training: attentions and windows of both tiny CLIPs.

    python tools/make_shapes.py --out data/shapes
    python benchmarks/training_free.py [--pictures 100] [--split test] [--data data/shapes]

One line a tower: mean IoU of the 24 nouns and of the 8 novel ones over pixels that show a shape, the same
with every word's vector given to another word, CPU milliseconds a picture, and these over the tower's own
forward on the picture, cut into squares of its input size. One thread.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ovd.datasets.images import read_image
from ovd.encoders.dense.tower import ClipDense
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.encoders.text_encoder import TextEncoder
from ovd.models.training_free.regions import decode
from ovd.text.vocabulary import Vocabulary

CLIPS = {'ResNet': 'ovd/assets/clip_tiny_shapes', 'ViT': 'ovd/assets/clip_tiny_vit_shapes'}
WINDOWS = (
    {'stride': 8, 'sizes': 64},
    {'stride': 8, 'sizes': 64, 'profile': 'triangle'},
    {'stride': 16, 'sizes': 64, 'profile': 'triangle'},
    {'stride': 8, 'sizes': 48, 'profile': 'triangle'},
)


def towers(model: str, is_vit: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of the towers that are compared."""
    for name in ('plain', 'maskclip', 'clipsurgery', 'sclip', 'clearclip', 'naclip'):
        attention: Any = {'name': name, 'blocks': 2 if is_vit else 1} if name == 'clipsurgery' else name
        yield name, {'model': model, 'attention': attention}
    for windows in WINDOWS:
        profile = windows.get('profile', 'flat')
        label = f'windows {windows["sizes"]}, stride {windows["stride"]}, {profile}'
        yield label, {'model': model, 'windows': windows}


def read_pictures(data: Path, split: str, count: int, vocabulary: Vocabulary) -> list[tuple[Tensor, Tensor]]:
    """Pictures uint8 [3, H, W] and labels [H, W], -1 where there is no shape."""
    content = json.loads((data / f'annotations/instances_{split}_all.json').read_text())
    labels = {item['id']: vocabulary.index(item['name']) for item in content['categories']}
    found = []
    for item in content['images'][:count]:
        pixels = torch.from_numpy(read_image(data / split / item['file_name'])).permute(2, 0, 1)
        truth = torch.full(pixels.shape[1:], -1)
        own = [a for a in content['annotations'] if a['image_id'] == item['id']]
        for annotation in sorted(own, key=lambda a: -a['area']):
            mask = decode(annotation['segmentation'], item['height'], item['width'])
            truth[torch.from_numpy(mask)] = labels[annotation['category_id']]
        found.append((pixels, truth))
    return found


def cut(pixels: Tensor, size: int) -> Tensor:
    """A picture [3, H, W] in squares [N, 3, size, size] side by side."""
    squares = pixels.float().unfold(1, size, size).unfold(2, size, size)
    return squares.permute(1, 2, 0, 3, 4).flatten(0, 1)


def iou(counts: Tensor) -> Tensor:
    """Confusion [K, K] (truth, predicted) -> IoU of each class."""
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


@torch.no_grad()
def measure(
    tower: ClipDense, text: Tensor, pictures: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], float]:
    """IoU with the words and with shuffled ones, and CPU seconds a picture."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.mean, tower.std))
    counts = [torch.zeros(len(text), len(text)) for _ in range(2)]
    spent = 0.0
    for pixels, truth in pictures:
        start = time.process_time()
        maps = tower(((pixels / 255 - mean) / std)[None])
        scores = F.interpolate(torch.einsum('kd,bdhw->bkhw', text, maps), truth.shape, mode='bilinear')[0]
        labels = scores.argmax(0)
        spent += time.process_time() - start
        shown = truth >= 0
        for table, predicted in zip(counts, (labels, (labels + 1) % len(text))):
            pairs = truth[shown] * len(text) + predicted[shown]
            table += torch.bincount(pairs, minlength=len(text) ** 2).view(len(text), -1)
    return [iou(table) for table in counts], spent / len(pictures)


@torch.no_grad()
def bare_forward(model: str, pictures: list[tuple[Tensor, Tensor]]) -> float:
    """CPU seconds of the tower's own forward on a picture, cut into squares of its input size."""
    tower = ClipDense(model, attention='plain')
    size = tower.image_size
    squares = torch.cat([cut(pixels, size) for pixels, _ in pictures[:20]])
    per_picture = len(squares) // min(20, len(pictures))
    tower.embed(squares[:per_picture])
    start = time.process_time()
    for batch in squares.split(per_picture):
        tower.embed(batch)
    return (time.process_time() - start) / min(20, len(pictures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pictures', type=int, default=100)
    parser.add_argument('--split', default='test', choices=('val', 'test'))
    parser.add_argument('--data', type=Path, default=Path('data/shapes'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = Vocabulary.parse('shapes')
    is_novel = torch.tensor(vocabulary.is_novel)
    pictures = read_pictures(args.data, args.split, args.pictures, vocabulary)
    print(f'{len(pictures)} {args.split} pictures; mIoU of 24 nouns, of 8 novel ones, with shuffled words')
    for name, model in CLIPS.items():
        text = TextEmbeddings.build(vocabulary, 'single', TextEncoder(model)).embeddings
        bare = bare_forward(model, pictures)
        for label, options in towers(model, name == 'ViT'):
            (found, shuffled), seconds = measure(ClipDense(**options), text, pictures)
            print(
                f'| {name} | {label} | {100 * found.nanmean():.1f} | {100 * found[is_novel].nanmean():.1f} | '
                f'{100 * shuffled.nanmean():.1f} | {1000 * seconds:.0f} ms | {seconds / bare:.2f}x |',
                flush=True,
            )


if __name__ == '__main__':
    main()
