"""Write OV-Shapes to files: pictures, COCO instances and captions, semantic maps, grounding phrases.

Layout of the folder, for every split in train, val and test::

    {split}/000000.png                       pictures, RGB
    semantic/{split}/000000.png              0 = background, k = category id k
    annotations/instances_{split}_all.json   all 24 categories, boxes and masks
    annotations/instances_{split}.json       training: base categories only; val and test: all of them
    annotations/captions_{split}.json        COCO captions, five per picture
    annotations/phrases_{split}.jsonl        one caption per line with the boxes of its phrases
    manifest.json                            settings of the drawing; written last
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..files import atomic_path, write_json
from ..text.vocabulary import Vocabulary
from .captions import Caption, write_captions
from .scenes import VERSION, Scene, draw_scene, random_stream

SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class ShapesPlan:
    """Settings of the drawing: ``counts`` pictures per split, ``size`` pixels on a side."""

    counts: Mapping[str, int]
    seed: int = 0
    size: int = 128

    def __post_init__(self) -> None:
        if set(self.counts) != set(SPLITS):
            raise ValueError(f'counts must name the splits {SPLITS}, got {sorted(self.counts)}')
        if self.size < 64:
            raise ValueError(f'size must be at least 64 pixels, got {self.size}')

    def manifest(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Content of ``manifest.json``."""
        return {
            **asdict(self),
            'counts': dict(self.counts),
            'version': VERSION,
            'nouns': list(vocabulary.names),
            'novel': [name for name, novel in zip(vocabulary.names, vocabulary.is_novel) if novel],
        }


def is_drawn(folder: str | os.PathLike[str], plan: ShapesPlan) -> bool:
    """Whether ``folder`` has a complete drawing with these settings.

    Raises:
        ValueError: the folder has the manifest of another data set, which drawing would overwrite.
    """
    path = Path(folder) / 'manifest.json'
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {'counts', 'nouns', 'version'} <= set(found):
        raise ValueError(f'{path} does not belong to OV-Shapes: draw into another folder')
    return bool(found == plan.manifest(Vocabulary.parse('shapes')))


def write_shapes(
    folder: str | os.PathLike[str], plan: ShapesPlan, on_picture: Callable[[], object] = lambda: None
) -> None:
    """Draw ``plan`` into ``folder``, calling ``on_picture`` after each picture (for a progress bar).

    Raises:
        ValueError: the folder has the manifest of another data set.
    """
    is_drawn(folder, plan)
    root, vocabulary = Path(folder), Vocabulary.parse('shapes')
    (root / 'manifest.json').unlink(missing_ok=True)
    for split in SPLITS:
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / 'semantic' / split).mkdir(parents=True, exist_ok=True)
        pictures = []
        for index in range(plan.counts[split]):
            pictures.append(_draw_picture(root, vocabulary.names, plan, split, index))
            on_picture()
        _write_annotations(root / 'annotations', split, pictures, vocabulary)
    write_json(root / 'manifest.json', plan.manifest(vocabulary))


def _draw_picture(
    root: Path, nouns: tuple[str, ...], plan: ShapesPlan, split: str, index: int
) -> dict[str, Any]:
    """Write one picture and its semantic map; return its COCO records, without annotation ids."""
    scene = draw_scene(nouns, plan.seed, split, index, plan.size)
    name = f'{index:06d}.png'
    _write_png(root / split / name, scene.image[..., ::-1])
    semantic = np.zeros((plan.size, plan.size), np.uint8)
    for shape in scene.shapes:
        semantic[shape.mask] = nouns.index(shape.noun) + 1
    _write_png(root / 'semantic' / split / name, semantic)
    captions = write_captions(scene, random_stream(plan.seed, f'{split} words', index))
    image = {'id': index + 1, 'file_name': name, 'height': plan.size, 'width': plan.size}
    return {
        'image': image,
        'annotations': _instance_records(scene, nouns, index + 1),
        'captions': [caption.text for caption in captions],
        'phrases': [_phrase_record(image, caption) for caption in captions],
    }


def _write_png(path: Path, pixels: np.ndarray) -> None:
    done, encoded = cv2.imencode('.png', pixels)
    if not done:
        raise OSError(f'cannot encode {path}')
    path.write_bytes(encoded.tobytes())


def _instance_records(scene: Scene, nouns: tuple[str, ...], image_id: int) -> list[dict[str, Any]]:
    records = []
    for shape in scene.shapes:
        x0, y0, x1, y1 = shape.box
        encoded = coco_mask.encode(np.asfortranarray(shape.mask.astype(np.uint8)))
        records.append(
            {
                'image_id': image_id,
                'category_id': nouns.index(shape.noun) + 1,
                'bbox': [x0, y0, x1 - x0, y1 - y0],
                'area': int(shape.mask.sum()),
                'iscrowd': 0,
                'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode()},
                'attributes': {'color': shape.color, 'texture': shape.texture},
            }
        )
    return records


def _phrase_record(image: Mapping[str, Any], caption: Caption) -> dict[str, Any]:
    """A caption in mmdet's ODVG format: boxes are xyxy in pixels, spans are characters."""
    regions = [
        {
            'phrase': caption.text[phrase.start : phrase.end],
            'tokens_positive': [[phrase.start, phrase.end]],
            'bbox': [list(box) for box in phrase.boxes],
        }
        for phrase in caption.phrases
    ]
    return {
        'filename': image['file_name'],
        'height': image['height'],
        'width': image['width'],
        'grounding': {'caption': caption.text, 'regions': regions},
    }


def _write_annotations(
    folder: Path, split: str, pictures: list[dict[str, Any]], vocabulary: Vocabulary
) -> None:
    info = {'description': f'OV-Shapes {split}', 'version': str(VERSION)}
    images = [picture['image'] for picture in pictures]
    categories = [
        {'id': label + 1, 'name': name, 'supercategory': 'shape'}
        for label, name in enumerate(vocabulary.names)
    ]
    annotations = [record for picture in pictures for record in picture['annotations']]
    everything = {
        'info': info,
        'images': images,
        'annotations': [{'id': i + 1, **record} for i, record in enumerate(annotations)],
        'categories': categories,
    }
    write_json(folder / f'instances_{split}_all.json', everything, indent=None)
    if split == 'train':
        everything['annotations'] = [
            record
            for record in everything['annotations']
            if not vocabulary.is_novel[record['category_id'] - 1]
        ]
        everything['categories'] = [
            category for category, novel in zip(categories, vocabulary.is_novel) if not novel
        ]
    write_json(folder / f'instances_{split}.json', everything, indent=None)

    sentences = [
        {'image_id': picture['image']['id'], 'caption': text}
        for picture in pictures
        for text in picture['captions']
    ]
    captions = [{'id': i + 1, **sentence} for i, sentence in enumerate(sentences)]
    write_json(
        folder / f'captions_{split}.json',
        {'info': info, 'images': images, 'annotations': captions},
        indent=None,
    )
    with atomic_path(folder / f'phrases_{split}.jsonl') as temporary:
        lines = [json.dumps(record) for picture in pictures for record in picture['phrases']]
        temporary.write_text(''.join(line + '\n' for line in lines), encoding='utf-8')
