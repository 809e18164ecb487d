"""Read and check annotation files, for data sets and metrics.

The result has the COCO layout, a dict of ``images``, ``annotations`` and ``categories``. COCO, LVIS and
Objects365 files use it; a PASCAL VOC image set (``ImageSets/Main/test.txt``) is converted from its XML files.
"""

import json
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import require_file
from ..options import check_option
from ..text.vocabulary import Vocabulary
from .masks import is_number

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
        Ids are unique, and image and category ids of annotations exist.
    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a repeated id, or an annotation of an unknown image or category.
    """
    file = Path(path)
    require_file(file, 'annotation file')
    content = read_voc(file) if file.suffix == '.txt' else _read_json(file)
    if problem := next(_problems(content), None):
        raise ValueError(f'{file}: {problem}')
    content['categories'].sort(key=lambda category: category['id'])
    return content


def _read_json(file: Path) -> Annotations:
    try:
        with file.open(encoding='utf-8') as stream:
            content = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'annotation file {file} is not valid JSON: {error}') from None
    for key in ('images', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"annotation file {file} is not in COCO's layout: it has no list of {key}")
    if not isinstance(content.setdefault('annotations', []), list):  # test sets have none
        raise ValueError(f'annotation file {file}: annotations is no list')
    return content


def _problems(content: Annotations) -> Iterator[str]:
    """Missing keys, repeated ids and names, and annotations of unknown images or categories."""
    known = {}
    for kind, keys in _REQUIRED.items():
        for index, item in enumerate(content[kind]):
            if not isinstance(item, dict):
                yield f'{kind}[{index}] is {item!r}, expected an object'
            yield from (f'{kind}[{index}] has no {key!r}' for key in keys if key not in item)
            if type(item['id']) is not int:
                yield f'{kind}[{index}] has the id {item["id"]!r}, expected an integer'
            for key, (accepts, expected) in _FIELDS[kind].items():
                if key in item and not accepts(item[key]):
                    yield f'{_SINGULAR[kind]} {item["id"]} has the {key} {item[key]!r}, expected {expected}'
        known[kind] = {item['id'] for item in content[kind]}
        if len(known[kind]) < len(content[kind]):
            yield f'id {_first_repeated([item["id"] for item in content[kind]])} is repeated in {kind}'
    names = [category['name'] for category in content['categories']]
    if len(set(names)) < len(names):
        yield f'category name {_first_repeated(names)!r} is repeated'
    for annotation in content['annotations']:
        for key, kind in (('image_id', 'images'), ('category_id', 'categories')):
            if annotation[key] not in known[kind]:
                yield f'annotation {annotation["id"]} has the {key} {annotation[key]}, which is not in {kind}'


_MAX_SIDE = 1 << 20  # pixels


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_pixels(value: Any) -> bool:
    return is_number(value) and 1 <= value <= _MAX_SIDE and value == int(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int)) and value in (0, 1)


def _is_path(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != '' and '\0' not in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_area(value: Any) -> bool:
    return value is None or (is_number(value) and value >= 0)


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


_SINGULAR = {'images': 'image', 'categories': 'category', 'annotations': 'annotation'}
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    'images': {
        'height': (_is_pixels, f'1 to {_MAX_SIDE} pixels'),
        'width': (_is_pixels, f'1 to {_MAX_SIDE} pixels'),
        'file_name': (_is_path, 'a path'),
        'coco_url': (_is_path, 'an address'),
        'neg_category_ids': (_is_id_list, 'a list of integers'),
        'not_exhaustive_category_ids': (_is_id_list, 'a list of integers'),
    },
    'categories': {'name': (_is_name, 'text')},
    'annotations': {
        'image_id': (_is_integer, 'an integer'),
        'category_id': (_is_integer, 'an integer'),
        'iscrowd': (_is_flag, '0 or 1'),
        'ignore': (_is_flag, '0 or 1'),
        'area': (_is_area, 'a number of pixels from 0, or null'),
    },
}


def box_problem(box: Any) -> str | None:
    """Describe why a box [x, y, w, h] is not four finite numbers; None if it is."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_number, box)):
        return 'is not four finite numbers'
    return None


def _first_repeated(items: Sequence[Any]) -> Any:
    return next(item for item, count in Counter(items).items() if count > 1)


def file_name_of(
    image: Mapping[str, Any], path_parts: int | None, source: str, path_key: str | None = None
) -> str:
    """Path of an image relative to its folder: ``file_name``, or the last two parts of LVIS's ``coco_url``.

    Args:
        path_parts: number of parts of the path to keep, counted from the end; None keeps all.
        source: name of the annotation file in messages.
        path_key: 'file_name' or 'coco_url'; by default the first that the image has.
    """
    keys = ('file_name', 'coco_url') if path_key is None else (path_key,)
    key = next((key for key in keys if image.get(key) is not None), None)
    if key is None:
        raise ValueError(f'{source}: image {image["id"]} has no {" and no ".join(keys)}')
    name, parts = image[key], path_parts or (2 if key == 'coco_url' else None)
    return str(PurePosixPath(*PurePosixPath(name).parts[-parts:])) if parts else name


def read_voc(image_set: Path) -> Annotations:
    """Convert a VOC image set ``<year>/ImageSets/Main/<name>.txt`` and its XML files to the COCO layout.

    A VOC box gives its first and last pixel, counted from 1; it becomes [xmin - 1, ymin - 1, width, height],
    the last pixel included. Image ids are 1, 2, ... in the order of the list; ``difficult`` is kept;
    ``file_name`` is ``<id>.jpg``. Categories are the 20 of VOC, or the sorted names if the files have others.

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
    """Height and width of the image, and (name, difficult, box) of its objects."""
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
        raise ValueError(f'{path} is missing')
    return text.strip()


def match_categories(vocabulary: Vocabulary, categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Find the label of each category of a file: its index in the vocabulary.

    Names are compared exactly, then by letters and digits only (``dining table`` equals ``diningtable`` and
    ``Dining_Table``), then after correcting known misspellings of public data sets, then with the synonyms of
    the vocabulary. Each step matches only what the steps before left unmatched, and skips ambiguous names.

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
    """Wrong name -> right name, letters and digits only."""
    lines = (SPLITS / 'name_corrections.txt').read_text(encoding='utf-8').splitlines()
    pairs = (line.split('=') for line in lines if not line.startswith('#'))
    return {_squash(wrong): _squash(right) for wrong, right in pairs}


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Keys with exactly one value."""
    values: dict[str, set[int]] = {}
    for key, value in pairs:
        values.setdefault(key, set()).add(value)
    return {key: found.pop() for key, found in values.items() if len(found) == 1}


@dataclass(frozen=True)
class ClassSplit:
    """Labels of base classes (with boxes in training) and novel classes; other classes are in neither."""

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
        """Determine base and novel classes.

        Args:
            split: ``None``: the novel names of the vocabulary, or if it has none, rare LVIS categories;
                ``'frequency'``: LVIS categories of frequency ``r`` are novel; ``'none'``: all are base;
                ``'coco48_17'``: that split, other classes are neither; or names as dict(base=..., novel=...).
            vocabulary: K classes.
            categories: those of the annotation file.
            labels: label of each matched category id.
        Raises:
            ValueError: an unknown split, or one with names outside the vocabulary.
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
                raise ValueError("split 'frequency' needs the `frequency` of LVIS categories")
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
        absent = [word for key in ('base', 'novel') for word in groups[key] if word not in vocabulary.names]
        if absent:
            raise ValueError(f'split {name!r} has classes outside the vocabulary: {", ".join(absent)}')
        if shared := set(groups['base']) & set(groups['novel']):
            raise ValueError(f'split {name!r}: base and novel classes share {", ".join(sorted(shared))}')
        base, novel = (
            tuple(sorted(vocabulary.index(word) for word in groups[key])) for key in ('base', 'novel')
        )
        return cls(name, base, novel)


def _read_split(name: str) -> dict[str, list[str]]:
    """Read ``splits/<name>_{base,novel}.txt``, one class name per line."""
    known = sorted(file.name.removesuffix('_base.txt') for file in SPLITS.glob('*_base.txt'))
    check_option('split', name, ('none', 'frequency', *known))
    return {key: (SPLITS / f'{name}_{key}.txt').read_text().splitlines() for key in ('base', 'novel')}


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """The first ``limit`` names, comma-separated, and the total number, for messages."""
    more = f', ... ({len(names)} in all)' if len(names) > limit else ''
    return ', '.join(map(repr, names[:limit])) + more
