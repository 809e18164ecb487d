"""Answers on many pictures as files for other programs: COCO, YOLO, Pascal VOC, labelme, CVAT, tables, masks.

An answer becomes a ``Record``, plain JSON values, so that it can be kept on disk while a long job runs; every
format is written from records.
Reading order: Record, FORMATS, write_records.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ...files import atomic_path, write_json
from ...optional import import_optional
from ..predictions import Prediction, Segmentation
from .sources import Picture


class Record(NamedTuple):
    """An answer as JSON values.

    Attributes:
        image: what the user called the picture.
        stem: file name of its results, without ending.
        height, width: of the picture, in pixels.
        objects: ``name``, ``label``, ``bbox`` [x, y, width, height] in pixels, ``score`` (None for a word of
            a map) and, where there is a mask, ``segmentation`` in COCO's run lengths.
    """

    image: str
    stem: str
    height: int
    width: int
    objects: list[dict[str, Any]]


def make_record(picture: Picture, answer: Prediction | Segmentation) -> Record:
    """The record of an answer."""
    is_map = isinstance(answer, Segmentation)
    found = answer.to_instances() if isinstance(answer, Segmentation) else answer
    objects = []
    for name, label, entry in zip(found.names, found.labels.tolist(), found.to_coco(0)):
        kept = {key: value for key, value in entry.items() if key in ('bbox', 'segmentation')}
        objects.append({'name': name, 'label': label, 'score': None if is_map else entry['score'], **kept})
    height, width = found.size
    return Record(picture.name, picture.stem, int(height), int(width), objects)


class Ids(NamedTuple):
    """Ids of a COCO file.

    Attributes:
        images: id of each picture, in the order of the records.
        categories: (id, name) of each label.
    """

    images: list[int]
    categories: list[tuple[int, str]]


def number(records: Sequence[Record], names: Sequence[str]) -> Ids:
    """Ids from 1 on: pictures in their order, names in theirs."""
    return Ids(list(range(1, len(records) + 1)), list(enumerate(names, 1)))


def ids_of_annotations(records: Sequence[Record], names: Sequence[str], content: Mapping[str, Any]) -> Ids:
    """The ids that an annotation file gives to the same pictures and names.

    Pictures are found by the end of their path, names by their letters, without case.

    Raises:
        KeyError: a picture or a name that the file does not have.
    """
    by_name = {category['name'].lower(): category['id'] for category in content['categories']}
    missing = [name for name in names if name.lower() not in by_name]
    if missing:
        raise KeyError(f'the annotation file has no category {missing[0]!r}')
    by_file = {str(image['file_name']): image['id'] for image in content['images']}
    by_base = {os.path.basename(file): image_id for file, image_id in by_file.items()}
    images = []
    for record in records:
        path = Path(record.image)
        ends = (Path(*path.parts[start:]).as_posix() for start in range(len(path.parts)))
        found = next((by_file[end] for end in ends if end in by_file), by_base.get(path.name))
        if found is None:
            raise KeyError(f'the annotation file has no image {record.image}')
        images.append(found)
    return Ids(images, [(by_name[name.lower()], name) for name in names])


def coco_results(records: Sequence[Record], ids: Ids) -> list[dict[str, Any]]:
    """Entries of a COCO results file; those of a map have neither box nor score."""
    entries = []
    for image_id, record in zip(ids.images, records):
        for found in record.objects:
            entry = {'image_id': image_id, 'category_id': ids.categories[found['label']][0]}
            if found['score'] is not None:
                entry |= {'bbox': found['bbox'], 'score': found['score']}
            if 'segmentation' in found:
                entry['segmentation'] = found['segmentation']
            entries.append(entry)
    return entries


def write_coco(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``coco.json``: a data set with images, categories and annotations, which keep their score."""
    images = [
        {'id': image_id, 'file_name': record.image, 'height': record.height, 'width': record.width}
        for image_id, record in zip(ids.images, records)
    ]
    annotations: list[dict[str, Any]] = []
    for image_id, record in zip(ids.images, records):
        for found in record.objects:
            mask = found.get('segmentation')
            area = _area(mask) if mask else found['bbox'][2] * found['bbox'][3]
            annotation = {
                'id': len(annotations) + 1,
                'image_id': image_id,
                'category_id': ids.categories[found['label']][0],
                'bbox': found['bbox'],
                'area': area,
                'iscrowd': 0,
            }
            annotation |= {} if found['score'] is None else {'score': found['score']}
            annotations.append(annotation | ({'segmentation': mask} if mask else {}))
    categories = [{'id': category, 'name': name} for category, name in ids.categories]
    content = {'images': images, 'categories': categories, 'annotations': annotations}
    write_json(out / 'coco.json', content, indent=None)


def write_yolo(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``yolo/labels/<stem>.txt`` and ``yolo/data.yaml``; masks become polygons."""
    formats = import_optional('supervision.dataset.formats.yolo', 'export', 'yolo files')
    for record in records:
        lines = formats.detections_to_yolo_annotations(
            detections(record), (record.height, record.width, 3), approximation_percentage=0.0
        )
        _write_text(out / 'yolo' / 'labels' / f'{record.stem}.txt', ''.join(f'{line}\n' for line in lines))
    names = [name for _, name in ids.categories]
    listed = ''.join(
        f'  {index}: {json.dumps(name, ensure_ascii=False)}\n' for index, name in enumerate(names)
    )
    _write_text(out / 'yolo' / 'data.yaml', f'nc: {len(names)}\nnames:\n{listed}')


def write_voc(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``voc/<stem>.xml``; masks become polygons."""
    formats = import_optional('supervision.dataset.formats.pascal_voc', 'export', 'voc files')
    names = [name for _, name in ids.categories]
    for record in records:
        text = formats.detections_to_pascal_voc(
            detections(record),
            names,
            os.path.basename(record.image),
            (record.height, record.width, 3),
            approximation_percentage=0.0,
        )
        root = ElementTree.fromstring(text)
        source = root.find('source/database')
        if source is not None:
            source.text = 'ovd'
        _write_xml(out / 'voc' / f'{record.stem}.xml', root)


def write_labelme(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``labelme/<stem>.json``: rectangles, or polygons where there are masks."""
    for record in records:
        shapes = []
        for index, found in enumerate(record.objects):
            polygons = mask_polygons(found)
            x, y, width, height = found['bbox']
            corners = [[[x, y], [x + width, y + height]]]
            shapes += [
                {
                    'label': found['name'],
                    'points': points,
                    'group_id': index if len(polygons) > 1 else None,
                    'description': '' if found['score'] is None else f'{found["score"]:.3f}',
                    'shape_type': 'polygon' if polygons else 'rectangle',
                    'flags': {},
                }
                for points in polygons or corners
            ]
        path = out / 'labelme' / f'{record.stem}.json'
        image = Path(record.image)
        content: dict[str, Any] = {
            'version': '5.5.0',
            'flags': {},
            'shapes': shapes,
            'imagePath': os.path.relpath(image, path.parent) if image.exists() else record.image,
            'imageData': None,
            'imageHeight': record.height,
            'imageWidth': record.width,
        }
        write_json(path, content)


def write_cvat(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``cvat.xml`` in the format 'CVAT for images 1.1': boxes, or polygons where there are masks."""
    root = ElementTree.Element('annotations')
    ElementTree.SubElement(root, 'version').text = '1.1'
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, 'meta'), 'task'), 'labels'
    )
    for _, name in ids.categories:
        ElementTree.SubElement(ElementTree.SubElement(labels, 'label'), 'name').text = name
    for index, record in enumerate(records):
        size = {'width': str(record.width), 'height': str(record.height)}
        name = os.path.basename(record.image)
        image = ElementTree.SubElement(root, 'image', {'id': str(index), 'name': name, **size})
        for found in record.objects:
            common = {'label': found['name'], 'source': 'auto', 'occluded': '0', 'z_order': '0'}
            x, y, width, height = found['bbox']
            corners = {'xtl': x, 'ytl': y, 'xbr': x + width, 'ybr': y + height}
            polygons = mask_polygons(found)
            for points in polygons:
                listed = ';'.join(f'{x:.2f},{y:.2f}' for x, y in points)
                ElementTree.SubElement(image, 'polygon', {**common, 'points': listed})
            if not polygons:
                box = {key: f'{value:.2f}' for key, value in corners.items()}
                ElementTree.SubElement(image, 'box', {**common, **box})
    _write_xml(out / 'cvat.xml', root)


COLUMNS = ('image', 'name', 'label', 'score', 'x1', 'y1', 'x2', 'y2', 'area')


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row of ``COLUMNS`` for each object; the area is that of the mask, else of the box, in pixels."""
    made = []
    for record in records:
        for found in record.objects:
            x, y, width, height = found['bbox']
            mask = found.get('segmentation')
            area = _area(mask) if mask else width * height
            values = (record.image, found['name'], found['label'], found['score'])
            made.append(dict(zip(COLUMNS, (*values, x, y, x + width, y + height, area))))
    return made


def write_csv(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``objects.csv``: a row for each object."""
    with (
        atomic_path(out / 'objects.csv') as temporary,
        temporary.open('w', newline='', encoding='utf-8') as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(records))


def write_parquet(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``objects.parquet``: a row for each object."""
    pandas = import_optional('pandas', 'export', 'parquet files')
    import_optional('pyarrow', 'export', 'parquet files')
    with atomic_path(out / 'objects.parquet') as temporary:
        pandas.DataFrame(rows(records), columns=list(COLUMNS)).to_parquet(temporary)


def write_masks(records: Sequence[Record], ids: Ids, out: Path) -> None:
    """``masks/<stem>.png``, 16 bits: 0 where there is nothing, else the number of the object from 1 on.

    ``masks/objects.json`` has the names of the numbers. Where masks overlap, the better score shows; objects
    without masks fill their box.
    """
    listed = {}
    for record in records:
        numbers = np.zeros((record.height, record.width), np.uint16)
        for index in reversed(range(len(record.objects))):
            numbers[object_mask(record, record.objects[index])] = index + 1
        with atomic_path(out / 'masks' / f'{record.stem}.png') as temporary:
            Image.fromarray(numbers).save(temporary, format='PNG')
        listed[record.stem] = [
            {'number': index, 'name': found['name'], 'score': found['score']}
            for index, found in enumerate(record.objects, 1)
        ]
    write_json(out / 'masks' / 'objects.json', listed)


Writer = Callable[[Sequence[Record], Ids, Path], None]
FORMATS: dict[str, Writer] = {
    'coco': write_coco,
    'yolo': write_yolo,
    'voc': write_voc,
    'labelme': write_labelme,
    'cvat': write_cvat,
    'csv': write_csv,
    'parquet': write_parquet,
    'masks': write_masks,
}


def object_mask(record: Record, found: Mapping[str, Any]) -> np.ndarray:
    """Pixels of an object, bool [H, W]; those of its box where it has no mask."""
    if 'segmentation' in found:
        return decode_mask(found['segmentation'])
    x, y, width, height = found['bbox']
    mask = np.zeros((record.height, record.width), bool)
    mask[max(0, round(y)) : max(0, round(y + height)), max(0, round(x)) : max(0, round(x + width))] = True
    return mask


def decode_mask(encoded: Mapping[str, Any]) -> np.ndarray:
    """A bool mask [H, W] from COCO's run lengths."""
    from pycocotools import mask as coco_mask

    mask: np.ndarray = coco_mask.decode(dict(encoded)).astype(bool)
    return mask


def _area(encoded: Mapping[str, Any]) -> int:
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(dict(encoded)))


def mask_polygons(found: Mapping[str, Any]) -> list[list[list[float]]]:
    """Outlines of an object's mask, [[x, y], ...] each; none without a mask."""
    if 'segmentation' not in found:
        return []
    supervision = import_optional('supervision', 'export', 'polygons of masks')
    return [points.tolist() for points in supervision.mask_to_polygons(decode_mask(found['segmentation']))]


def detections(record: Record) -> Any:
    """``supervision.Detections`` of a record."""
    supervision = import_optional('supervision', 'export', 'yolo and voc files')
    if not record.objects:
        return supervision.Detections.empty()
    boxes = np.array([found['bbox'] for found in record.objects], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    masks = [found['segmentation'] for found in record.objects if 'segmentation' in found]
    return supervision.Detections(
        xyxy=boxes.astype(np.float32),
        mask=np.stack([decode_mask(mask) for mask in masks]) if masks else None,
        class_id=np.array([found['label'] for found in record.objects], np.int64),
    )


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def _write_xml(path: Path, root: ElementTree.Element) -> None:
    ElementTree.indent(root)
    _write_text(path, ElementTree.tostring(root, encoding='unicode') + '\n')
