"""A caching task small enough to run in a second: images, proposals, a random tiny CLIP, and its config."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import ROOT, write_coco
from tests.toys.clip import VIT, write_architecture

HEIGHT, WIDTH, DIM = 48, 64, 24


def write_task(folder: Path, num_images: int = 13, per_image: int = 6, **changes: Any) -> dict[str, Any]:
    """Write images, annotations, proposals and the tower's architecture; return the ``region_cache`` section.

    Image 3 has no proposals, and every image has one that is too small to keep.
    """
    annotations = write_coco(
        folder,
        ['one', 'two'],
        [[(index % 2, [5, 6, 30, 20])] for index in range(num_images)],
        (HEIGHT, WIDTH),
    )
    random = np.random.default_rng(0)
    results = []
    for image_id in range(1, num_images + 1):
        for _ in range(0 if image_id == 3 else per_image):
            width, height = random.uniform(9, 40, 2)
            x, y = random.uniform(0, WIDTH - width), random.uniform(0, HEIGHT - height)
            results.append(
                {'image_id': image_id, 'bbox': [x, y, width, height], 'score': float(random.random())}
            )
        results.append({'image_id': image_id, 'bbox': [1, 1, 3, 20], 'score': 2.0})
    (folder / 'proposals.json').write_text(json.dumps(results))
    return {
        'store': str(folder / 'store'),
        'dataset': {'ann_file': str(annotations), 'images': str(folder / 'images')},
        'image_encoder': {
            'model': str(write_architecture(folder / 'tiny.json', vision_cfg=VIT)),
            'pretrained': 'random:0',
        },
        'proposals': {'file': str(folder / 'proposals.json'), 'top': 5, 'nms': None},
        'batch_size': 32,
        'images_per_shard': 2,
        **changes,
    }


def write_config(folder: Path, section: dict[str, Any]) -> Path:
    """A config file with that section."""
    path = folder / 'config.py'
    path.write_text(f'region_cache = {section!r}\n')
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store, hidden ones included."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_tool(name: str, *arguments: Any, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run one of our tools as a user would, with one thread."""
    command = [*(launcher or (sys.executable,)), str(ROOT / 'tools' / name), *map(str, arguments)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
