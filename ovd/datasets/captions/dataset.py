"""Images with captions: a COCO captions file, a table, JSON lines or a folder.

Reading order: CaptionDataset, then the readers, which yield :class:`CaptionPair` objects.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from ...files import IMAGE_SUFFIXES
from ...options import check_option
from ...registry import DATASETS
from ..images import BrokenImageError, find_missing


class CaptionPair(NamedTuple):
    """An image and one of its captions, as read from a file.

    Attributes:
        image: path relative to the image folder.
        caption: any value of the file, normally a string; None if the image has no caption.
        where: 'line 7', 'annotation 3 of image 12' ..., for messages.
        image_id: of a COCO file.
    """

    image: str
    caption: Any
    where: str
    image_id: int | str | None = None


@DATASETS.register_module()
class CaptionDataset(BaseDataset):
    """Image-caption pairs; samples have ``img_path``, ``img_id``, ``caption``, and all ``captions``.

    The captions of one image are grouped. ``metainfo`` has ``ann_file`` and ``pairs`` (their number).

    Args:
        ann_file: a COCO captions file (``.json``), a table with a header (``.csv``, ``.tsv``), JSON lines
            (``.jsonl``: per line an object with image and caption, or a list of captions), or '' for a folder
            of images with text files of the same name (``.txt``, one caption per line), subfolders included.
        data_prefix: ``img_path``, the image folder.
        image_field, caption_field: names in a table or in JSON lines; numbers are columns, from 0, of a table
            without a header.
        captions: 'draw' one of an image's captions each time it is loaded, take the 'first', or make a sample
            of each ('all'); by default 'draw' in training and 'first' in test mode.
        missing_images: 'refuse' or 'drop' images that are not on disk, or leave it 'unchecked'.
        empty_captions: 'refuse' or 'drop' captions that are blank or not strings, and images without one.
        broken_images: 'refuse' (the run ends), or 'replace' an image that cannot be decoded by a random other
            one and log their number; always 'refuse' in test mode.
        kwargs: see ``mmengine.dataset.BaseDataset``.
    """

    METAINFO: dict[str, Any] = {}

    def __init__(
        self,
        ann_file: str = '',
        *args: Any,
        image_field: str | int = 'image',
        caption_field: str | int = 'caption',
        captions: str | None = None,
        missing_images: str = 'refuse',
        empty_captions: str = 'refuse',
        broken_images: str = 'refuse',
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        self.image_field = image_field
        self.caption_field = caption_field
        self.captions = captions or ('first' if test_mode else 'draw')
        self.missing_images = missing_images
        self.empty_captions = empty_captions
        self.broken_images = broken_images
        check_option('captions', self.captions, ('draw', 'first', 'all'))
        check_option('missing_images', missing_images, ('refuse', 'drop', 'unchecked'))
        check_option('empty_captions', empty_captions, ('refuse', 'drop'))
        check_option('broken_images', broken_images, ('refuse', 'replace'))
        self._replaced = SkipCounter('images')
        super().__init__(ann_file, *args, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        source = self.ann_file or self.data_prefix.get('img_path', '')
        pairs = self._without_empty_captions(source, list(self._read()))
        pairs = self._without_missing_images(source, pairs)
        if not pairs:
            raise ValueError(f'{source}: no image with a caption is left')
        self._metainfo.update(ann_file=source, pairs=len(pairs))
        groups: dict[str, list[CaptionPair]] = {}
        for pair in pairs:
            groups.setdefault(pair.image, []).append(pair)
        if self.captions == 'all':
            of_image = {image: [pair.caption for pair in group] for image, group in groups.items()}
            return [_item([pair]) | {'of_image': of_image[pair.image]} for pair in pairs]
        return [_item(group) for group in groups.values()]

    def prepare_data(self, idx: int) -> Any:
        """Choose a caption and run the pipeline; None, so that mmengine draws another sample, if broken."""
        info = self.get_data_info(idx)
        texts = info['captions']
        draws = self.captions == 'draw' and len(texts) > 1
        info['caption'] = texts[np.random.randint(len(texts)) if draws else 0]  # noqa: NPY002
        info['captions'] = info.pop('of_image', texts)
        if self.broken_images == 'refuse' or self.test_mode:
            return self.pipeline(info)
        try:
            return self.pipeline(info)
        except (BrokenImageError, FileNotFoundError) as error:
            self._replaced.add('broken', str(error))
            return None

    def _read(self) -> Iterator[CaptionPair]:
        """All pairs; paths include the image folder."""
        folder = self.data_prefix.get('img_path', '')
        if not self.ann_file:
            return read_folder(folder)
        suffix = Path(self.ann_file).suffix.lower()
        check_option(f'format of caption file {self.ann_file}', suffix, ('.json', '.jsonl', '.csv', '.tsv'))
        fields = (self.image_field, self.caption_field)
        if suffix == '.json':
            pairs = read_coco_captions(self.ann_file)
        elif suffix == '.jsonl':
            pairs = read_json_lines(self.ann_file, *fields)
        else:
            pairs = read_table(self.ann_file, *fields, delimiter=',' if suffix == '.csv' else '\t')
        return (pair._replace(image=os.path.join(folder, pair.image)) for pair in pairs)

    def _without_empty_captions(self, source: str, pairs: list[CaptionPair]) -> list[CaptionPair]:
        kept = [pair for pair in pairs if isinstance(pair.caption, str) and pair.caption.strip()]
        if len(kept) < len(pairs):
            if self.empty_captions == 'refuse':
                bad = next(p for p in pairs if not (isinstance(p.caption, str) and p.caption.strip()))
                what = 'has no caption' if bad.caption is None else f'has the caption {bad.caption!r}'
                raise ValueError(
                    f'{source}: {bad.where} ({bad.image}) {what}; {len(pairs) - len(kept)} of {len(pairs)} '
                    "captions are empty or not strings (empty_captions='drop' skips them)"
                )
            self._log(source, len(pairs) - len(kept), 'captions that are empty or not strings')
        return kept

    def _without_missing_images(self, source: str, pairs: list[CaptionPair]) -> list[CaptionPair]:
        if self.missing_images == 'unchecked':
            return pairs
        missing = set(find_missing(dict.fromkeys(pair.image for pair in pairs)))
        if missing and self.missing_images == 'refuse':
            first = next(pair for pair in pairs if pair.image in missing)
            total = len({pair.image for pair in pairs})
            raise FileNotFoundError(
                f'{source}: {first.where}: image {first.image} does not exist; {len(missing)} of {total} are '
                "missing (missing_images='drop' skips them)"
            )
        if missing:
            self._log(source, len(missing), 'images that do not exist')
        return [pair for pair in pairs if pair.image not in missing]

    @staticmethod
    def _log(source: str, count: int, what: str) -> None:
        MMLogger.get_current_instance().warning(f'{source}: skipped {count} {what}')


def _item(pairs: list[CaptionPair]) -> dict[str, Any]:
    """Entry of the data list for the pairs of one image."""
    captions = [pair.caption for pair in pairs]
    return {'img_path': pairs[0].image, 'img_id': pairs[0].image_id, 'captions': captions}


class SkipCounter:
    """Counts skipped samples, and logs a warning at the 1st, 10th, 100th ... one; per loading process.

    Args:
        what: name of the skipped things in messages, in the plural.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, message: str) -> None:
        """Count one of a kind; ``message`` describes it in one line."""
        self.counts[kind] += 1
        total = sum(self.counts.values())
        if total == 10 ** (len(str(total)) - 1):
            MMLogger.get_current_instance().warning(
                f'{self.what} skipped by this loader so far: {self}; the last: {message}'
            )

    def __str__(self) -> str:
        return ', '.join(f'{count} {kind}' for kind, count in self.counts.items())


def read_coco_captions(path: str) -> Iterator[CaptionPair]:
    """Pairs of a COCO captions file in the order of its images.

    Raises:
        ValueError: another format, a repeated id, or a caption of an unknown image.
    """
    with _text(path):
        content = json.loads(Path(path).read_text(encoding='utf-8-sig'))
    images, annotations = (
        content.get(key) if isinstance(content, dict) else None for key in ('images', 'annotations')
    )
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f"caption file {path} is not in COCO's layout: it needs images and annotations")
    by_image: dict[int | str, list[CaptionPair]] = {}
    names: dict[int | str, str] = {}
    for image in images:
        image_id, name = (image.get(key) if isinstance(image, dict) else None for key in ('id', 'file_name'))
        if not isinstance(image_id, int | str) or image_id in names or not isinstance(name, str):
            raise ValueError(f'caption file {path}: image {image} needs a unique id and a file_name')
        names[image_id] = name
        by_image[image_id] = []
    for annotation in annotations:
        image_id = annotation.get('image_id') if isinstance(annotation, dict) else None
        if not isinstance(image_id, int | str) or image_id not in names:
            raise ValueError(f'caption file {path}: annotation {annotation} belongs to an unknown image')
        where = f'annotation {annotation.get("id")} of image {image_id}'
        # A caption of null counts as blank, unlike an image without annotations.
        by_image[image_id].append(
            CaptionPair(names[image_id], annotation.get('caption') or '', where, image_id)
        )
    if annotations and not any('caption' in annotation for annotation in annotations):
        raise ValueError(
            f'caption file {path} has no captions; its annotations have {", ".join(sorted(annotations[0]))}'
        )
    for image_id, pairs in by_image.items():
        yield from pairs or [CaptionPair(names[image_id], None, f'image {image_id}', image_id)]


def read_table(
    path: str, image_field: str | int, caption_field: str | int, delimiter: str = ','
) -> Iterator[CaptionPair]:
    """Pairs of a CSV or TSV file.

    Args:
        image_field, caption_field: column names, or column numbers if the table has no header.
    Raises:
        ValueError: no such column.
    """
    with _text(path), open(path, encoding='utf-8-sig', newline='') as file:
        rows = csv.reader(file, delimiter=delimiter)
        columns = [image_field, caption_field]
        if not all(isinstance(column, int) for column in columns):
            header = next(rows, [])
            columns = [header.index(str(column)) for column in columns]
        image_column, caption_column = (int(column) for column in columns)
        for row in rows:
            if not row:
                continue
            where = f'line {rows.line_num}'
            if len(row) <= image_column:
                raise ValueError(f'{where} has no column {image_column}: {row}')
            yield CaptionPair(
                row[image_column], row[caption_column] if len(row) > caption_column else None, where
            )


def read_json_lines(path: str, image_field: str | int, caption_field: str | int) -> Iterator[CaptionPair]:
    """Pairs of a file with one JSON object per line; a list of captions gives several pairs.

    Raises:
        ValueError: a line is not a JSON object with an image.
    """
    with _text(path), open(path, encoding='utf-8-sig') as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f'line {number} is not valid JSON: {error}') from None
            image = row.get(image_field) if isinstance(row, dict) else None
            if not isinstance(image, str):
                raise ValueError(f'line {number} has no image path in {image_field!r}: {line.strip():.100}')
            texts = row.get(caption_field)
            for text in texts if isinstance(texts, list) and texts else [texts]:
                yield CaptionPair(image, text, f'line {number}')


def read_folder(folder: str) -> Iterator[CaptionPair]:
    """Pairs of a folder with subfolders: images, and the lines of text files of the same name.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    paths: Iterable[Path] = sorted(Path(folder).rglob('*'))
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(f'folder {folder} does not exist or has no images')
    for image in images:
        text = image.with_suffix('.txt')
        with _text(text):
            lines = text.read_text(encoding='utf-8-sig').splitlines() if text.is_file() else []
        captions: list[str | None] = [line for line in lines if line.strip()]
        for caption in captions or ['' if text.is_file() else None]:
            yield CaptionPair(str(image), caption, f'image {image.name}')


@contextmanager
def _text(path: str | Path) -> Iterator[None]:
    """Name the file in errors about its text."""
    try:
        yield
    except (ValueError, csv.Error) as error:  # also UnicodeDecodeError and JSONDecodeError
        raise ValueError(f'caption file {path}: {error}') from None
