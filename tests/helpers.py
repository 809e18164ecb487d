"""What several test files need: shared reference data, toy images and toy annotation files."""

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def shared_path(name: str) -> Path:
    """A file of the reference data kept beside the checkout; the test is skipped where it is absent."""
    path = ROOT.parent / 'shared' / name
    if not path.exists():
        pytest.skip(f'reference data {name} is not beside this checkout')
    return path


def leave_group() -> NoReturn:
    """End a process that was one of several, without Python's own end.

    DistributedDataParallel can keep its process group alive, and a thread of gloo that asks for the
    interpreter's lock while Python finalizes aborts the process.
    """
    torch.distributed.destroy_process_group()
    os._exit(0)


def write_image(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A PNG of smooth random colours, so that crops differ from each other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def write_coco(
    folder: Path,
    names: list[str],
    boxes: list[list[tuple[int, list[float]]]],
    size: tuple[int, int] = (48, 64),
    category_ids: list[int] | None = None,
) -> Path:
    """Write images and a COCO instances file; return the annotation path.

    Args:
        folder: receives ``images/000000.png`` ... and ``instances.json``.
        names: category names.
        boxes: per image, a list of (index into names, [x, y, w, h] in pixels); masks are the boxes.
        size: (height, width) of every image.
        category_ids: ids of the categories, by default 1, 2, ...
    """
    ids = category_ids or list(range(1, len(names) + 1))
    content: dict[str, Any] = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': name} for i, name in zip(ids, names)],
    }
    for index, objects in enumerate(boxes):
        write_image(folder / 'images' / f'{index:06d}.png', *size, seed=index)
        content['images'].append(
            {'id': index + 1, 'file_name': f'{index:06d}.png', 'height': size[0], 'width': size[1]}
        )
        for label, (x, y, w, h) in objects:
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': index + 1,
                    'category_id': ids[label],
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': 0,
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    path = folder / 'instances.json'
    path.write_text(json.dumps(content))
    return path
