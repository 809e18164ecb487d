"""What answering costs beside the bare image forward: a picture segmented, the crops of a picture named.

    python benchmarks/training_free_cost.py [--repeats 3]

Segmentation: ViT-B/16 with random weights, 512 x 512 pixels, 150 words, labels at full size, against the
tower's own blocks and projection on the same tensor. Detection: 100 boxes at two scales, ViT-B/32 with
random weights, against the tower on the 200 crops. CPU seconds of one thread, the best of the repeats.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmseg.structures import SegDataSample

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ovd.models.training_free.detector import ClipDetector
from ovd.models.training_free.segmentor import ClipSegmentor


def best_time(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@torch.no_grad()
def segmentation(repeats: int) -> None:
    clip = {'model': 'ViT-B-16', 'pretrained': 'random:0'}
    images = torch.randn(1, 3, 512, 512)
    sample = SegDataSample(metainfo={'ori_shape': (512, 512)})
    words = {'vocabulary': 'ade150', 'templates': 'name'}
    bare = ClipSegmentor({**clip, 'attention': 'plain'}, text=words).eval()
    base = best_time(lambda: bare.tower.patches(images), repeats)
    print(f'bare image forward, ViT-B/16, 512 x 512: {base:.2f} s')
    for attention in ('plain', 'maskclip', 'sclip', 'clearclip', 'naclip', 'clipsurgery'):
        model = ClipSegmentor({**clip, 'attention': attention}, text=words).eval()
        model.prepare_text()
        spent = best_time(lambda model=model: model.predict(images, [sample]), repeats)  # type: ignore[misc]
        print(f'| segmentation, {attention} | {spent:.2f} s | {spent / base:.2f}x |', flush=True)


@torch.no_grad()
def detection(repeats: int) -> None:
    model = ClipDetector(
        {'model': 'ViT-B-32', 'pretrained': 'random:0'}, text={'vocabulary': 'coco', 'templates': 'name'}
    ).eval()
    model.prepare_text()
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 480, 640), generator=generator).float()
    corners = torch.rand(100, 2, generator=generator) * torch.tensor([500.0, 350.0])
    boxes = torch.cat([corners, corners + 20 + 100 * torch.rand(100, 2, generator=generator)], 1)
    crops = torch.randint(0, 256, (200, 3, 224, 224), dtype=torch.uint8)
    tower = model.embedder.tower
    base = best_time(lambda: tower.encode(tower.normalize(crops)), repeats)

    def run() -> None:
        sample = DetDataSample(metainfo={'img_id': 1, 'ori_shape': (480, 640), 'img_shape': (480, 640)})
        sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(100))
        model.predict(image, [sample])

    model.source.nms = None
    spent = best_time(run, repeats)
    print(f'| detection, 100 boxes, {len(model.vocabulary)} words | {spent:.2f} s | {spent / base:.2f}x |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    segmentation(args.repeats)
    detection(args.repeats)


if __name__ == '__main__':
    main()
