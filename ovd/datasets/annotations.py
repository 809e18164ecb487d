"""Annotation files: read and checked once, for data sets and metrics alike.

Everything is brought to the COCO layout, a dict of ``images``, ``annotations`` and ``categories``: COCO, LVIS
and Objects365 files are in it already; a PASCAL VOC image set (``ImageSets/Main/test.txt``) is converted from
its XML files, so that the rest of the code knows one format.
"""

import json
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..text.vocabulary import Vocabulary

Annotations = dict[str, list[dict[str, Any]]]

_REQUIRED = {
    'images': ('id', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id'),
}

SPLITS = Path(__file__).parent / 'splits'


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Read a COCO-style ``.json`` file or a VOC image set ``.txt``.

    Returns:
        ``images`` (id, height, width, file_name or coco_url, ...), ``annotations`` (id, image_id,
        category_id, bbox [x, y, w, h] in pixels, ...) and ``categories`` (id, name, ...) by rising id.
        Ids are unique and every reference resolves.
    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a repeated id, or an annotation of an unknown image or category.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f'annotation file {file} does not exist')
    content = read_voc(file) if file.suffix == '.txt' else _read_json(file)
    _check_references(content, file)
    content['categories'].sort(key=lambda category: category['id'])
    return content


def _read_json(file: Path) -> Annotations:
    try:
        with file.open(encoding='utf-8') as stream:
            content = json.load(stream)
    except ValueError as error:
        raise ValueError(f'annotation file {file} is not valid JSON: {error}') from None
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise ValueError(f"annotation file {file} is not in COCO's layout: it has no list of images")
    if not isinstance(content.get('categories'), list):
        raise ValueError(f"annotation file {file} is not in COCO's layout: it has no list of categories")
    content.setdefault('annotations', [])  # test sets have none
    return content


def _check_references(content: Annotations, file: Path) -> None:
    """Ids are unique, names are unique, and annotations refer to images and categories that exist."""
    known = {}
    for kind, keys in _REQUIRED.items():
        for position, item in enumerate(content[kind]):
            if absent := [key for key in keys if key not in item]:
                raise ValueError(f'{file}: number {position} of the {kind} has no {absent[0]!r}')
            if not isinstance(item['id'], int):
                raise ValueError(f'{file}: {kind} must have whole numbers as ids, got {item["id"]!r}')
        known[kind] = {item['id'] for item in content[kind]}
        if len(known[kind]) < len(content[kind]):
            repeated = _first_repeated([item['id'] for item in content[kind]])
            raise ValueError(f'{file}: id {repeated} occurs more than once among the {kind}')
    names = [category['name'] for category in content['categories']]
    if len(set(names)) < len(names):
        raise ValueError(f'{file}: category name {_first_repeated(names)!r} occurs more than once')
    for annotation in content['annotations']:
        if annotation['image_id'] not in known['images']:
            raise ValueError(
                f'{file}: annotation {annotation["id"]} belongs to image {annotation["image_id"]}, '
                'which is not in the file'
            )
        if annotation['category_id'] not in known['categories']:
            raise ValueError(
                f'{file}: annotation {annotation["id"]} has the unknown category id '
                f'{annotation["category_id"]}'
            )


def _first_repeated(items: Sequence[Any]) -> Any:
    return next(item for item, count in Counter(items).items() if count > 1)


def file_name_of(
    image: Mapping[str, Any], path_parts: int | None, source: str, path_key: str | None = None
) -> str:
    """Path of an image below its folder: ``file_name``, or the last two parts of LVIS's ``coco_url``.

    Args:
        path_parts: keep only the last so many parts.
        source: the annotation file, for messages.
        path_key: 'file_name' or 'coco_url'; by default the first of them that is there.
    """
    keys = ('file_name', 'coco_url') if path_key is None else (path_key,)
    key = next((key for key in keys if image.get(key) is not None), None)
    if key is None:
        raise ValueError(f'{source}: image {image["id"]} has no {" and no ".join(keys)}')
    name, parts = image[key], path_parts or (2 if key == 'coco_url' else None)
    return str(PurePosixPath(*PurePosixPath(name).parts[-parts:])) if parts else name


def read_voc(image_set: Path) -> Annotations:
    """Convert a VOC image set ``<year>/ImageSets/Main/<name>.txt`` and its XML files to the COCO layout.

    A VOC box names its first and last pixel, counted from 1; it becomes [xmin - 1, ymin - 1, width, height]
    with the last pixel inside. Image ids are 1, 2, ... in the order of the list; ``difficult`` is kept;
    ``file_name`` is ``<id>.jpg``. Categories are the 20 of VOC, or the sorted names of another data set.

    Source: the VOC development kit, Sec. "annotations" (first pixel is 1); detectron2 converts the same way.
    """
    folder = image_set.parents[2] / 'Annotations'
    content: Annotations = {'images': [], 'annotations': [], 'categories': []}
    objects: list[tuple[int, str, bool, list[float]]] = []
    for image_id, line in enumerate(
        filter(None, map(str.split, image_set.read_text().splitlines())), start=1
    ):
        xml = folder / f'{line[0]}.xml'
        image, found = _read_voc_xml(xml)
        content['images'].append({'id': image_id, 'file_name': f'{line[0]}.jpg', **image})
        objects += [(image_id, *each) for each in found]
    names = sorted({name for _, name, _, _ in objects})
    voc_names = (SPLITS / 'voc_names.txt').read_text().splitlines()
    names = voc_names if set(names) <= set(voc_names) else names
    content['categories'] = [{'id': index, 'name': name} for index, name in enumerate(names, start=1)]
    ids = {name: index for index, name in enumerate(names, start=1)}
    for number, (image_id, name, difficult, box) in enumerate(objects, start=1):
        content['annotations'].append(
            {
                'id': number,
                'image_id': image_id,
                'category_id': ids[name],
                'bbox': box,
                'area': box[2] * box[3],
                'iscrowd': 0,
                'difficult': int(difficult),
            }
        )
    return content


def _read_voc_xml(file: Path) -> tuple[dict[str, int], list[tuple[str, bool, list[float]]]]:
    """Size of the image and (name, difficult, box) of its objects."""
    if not file.is_file():
        raise FileNotFoundError(f'VOC annotation {file} does not exist')
    try:
        root = ElementTree.parse(file).getroot()
        size = {key: int(_text(root, f'size/{key}')) for key in ('height', 'width')}
        objects = []
        for item in root.findall('object'):
            x1, y1, x2, y2 = (float(_text(item, f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax'))
            difficult = item.findtext('difficult', '0').strip() == '1'
            objects.append((_text(item, 'name'), difficult, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f'VOC annotation {file} cannot be read: {error}') from None
    return size, objects


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f'it has no {path}')
    return text.strip()


def match_categories(vocabulary: Vocabulary, categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Find the label of each category of a file: its index in the vocabulary.

    Names are compared exactly, then by letters and digits alone (``dining table`` is ``diningtable`` and
    ``Dining_Table``), then with known misspellings of public data sets corrected, then through the
    vocabulary's synonyms. A step only serves categories and classes that the steps before left over, and
    ignores a key that is not unique.

    Returns:
        label of each matched category id; categories outside the vocabulary are absent.
    """
    labels: dict[int, int] = {}
    corrections = _read_corrections()

    def corrected(name: str) -> str:
        return corrections.get(_squash(name), _squash(name))

    names = [*enumerate(vocabulary.names), *enumerate(vocabulary.labels)]
    synonyms = [(label, word) for label, words in enumerate(vocabulary.synonyms) for word in words]
    for words, key in ((names, str), (names, _squash), (names, corrected), (synonyms, corrected)):
        taken = set(labels.values())
        wanted = _unique((key(word), label) for label, word in words if label not in taken)
        offered = _unique((key(item['name']), item['id']) for item in categories if item['id'] not in labels)
        labels.update({offered[name]: wanted[name] for name in wanted.keys() & offered.keys()})
    return labels


def _squash(name: str) -> str:
    return ''.join(character for character in name.casefold() if character.isalnum())


def _read_corrections() -> dict[str, str]:
    """Squashed wrong name -> squashed right name."""
    lines = (SPLITS / 'name_corrections.txt').read_text(encoding='utf-8').splitlines()
    pairs = (line.split('=') for line in lines if not line.startswith('#'))
    return {_squash(wrong): _squash(right) for wrong, right in pairs}


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Keys that stand for one value only."""
    values: dict[str, set[int]] = {}
    for key, value in pairs:
        values.setdefault(key, set()).add(value)
    return {key: found.pop() for key, found in values.items() if len(found) == 1}


@dataclass(frozen=True)
class ClassSplit:
    """Which labels are base (with boxes in training), which novel; the rest is in the vocabulary only."""

    name: str
    base: tuple[int, ...]
    novel: tuple[int, ...]

    @classmethod
    def resolve(
        cls,
        split: str | Mapping[str, Sequence[str]] | None,
        vocabulary: Vocabulary,
        categories: Sequence[Mapping[str, Any]],
        labels: Mapping[int, int],
    ) -> 'ClassSplit':
        """Decide base and novel classes.

        Args:
            split: ``None``: the vocabulary's novel names, or where it has none, rare LVIS categories;
                ``'frequency'``: LVIS categories of frequency ``r`` are novel; ``'none'``: all are base;
                ``'coco48_17'``: the names of that split, others are neither; or dict(base=..., novel=...) of
                names.
            vocabulary: K classes.
            categories: those of the annotation file.
            labels: label of each matched category id.
        Raises:
            ValueError: an unknown split, or one whose names the vocabulary lacks.
        """
        rare = tuple(
            sorted(
                labels[item['id']]
                for item in categories
                if item.get('frequency') == 'r' and item['id'] in labels
            )
        )
        if split is None and (any(vocabulary.is_novel) or not rare):
            novel = tuple(label for label, is_novel in enumerate(vocabulary.is_novel) if is_novel)
            return cls._complement('vocabulary', novel, vocabulary)
        if split is None or split == 'frequency':
            if not any('frequency' in category for category in categories):
                raise ValueError(
                    "split 'frequency' needs LVIS categories, the annotation file gives no frequency"
                )
            return cls._complement('frequency', rare, vocabulary)
        if split == 'none':
            return cls._complement('none', (), vocabulary)
        if isinstance(split, Mapping):
            return cls._from_names('custom', split, vocabulary)
        return cls._from_names(split, _read_split(split), vocabulary)

    @classmethod
    def _complement(cls, name: str, novel: tuple[int, ...], vocabulary: Vocabulary) -> 'ClassSplit':
        return cls(name, tuple(label for label in range(len(vocabulary)) if label not in set(novel)), novel)

    @classmethod
    def _from_names(
        cls, name: str, groups: Mapping[str, Sequence[str]], vocabulary: Vocabulary
    ) -> 'ClassSplit':
        if set(groups) != {'base', 'novel'}:
            raise ValueError(f'a split names its base and novel classes, got the keys {sorted(groups)}')
        absent = [word for group in groups.values() for word in group if word not in vocabulary.names]
        if absent:
            raise ValueError(f'split {name!r} names classes outside the vocabulary: {", ".join(absent)}')
        if shared := set(groups['base']) & set(groups['novel']):
            raise ValueError(
                f'split {name!r} has classes that are base and novel: {", ".join(sorted(shared))}'
            )
        base, novel = (
            tuple(sorted(vocabulary.index(word) for word in groups[key])) for key in ('base', 'novel')
        )
        return cls(name, base, novel)


def _read_split(name: str) -> dict[str, list[str]]:
    """Names of a split kept in ``splits/<name>_{base,novel}.txt``, one a line."""
    known = sorted(file.name.removesuffix('_base.txt') for file in SPLITS.glob('*_base.txt'))
    if name not in known:
        raise ValueError(
            f"unknown split {name!r}; known are 'none', 'frequency' and {', '.join(map(repr, known))}"
        )
    return {key: (SPLITS / f'{name}_{key}.txt').read_text().splitlines() for key in ('base', 'novel')}


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """Names for a message: the first ``limit``, and how many there are."""
    more = f', ... ({len(names)} in all)' if len(names) > limit else ''
    return ', '.join(map(repr, names[:limit])) + more
