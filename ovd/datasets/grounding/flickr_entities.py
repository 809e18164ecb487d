"""Flickr30k Entities as published: sentences with marked phrases, and boxes in XML.

Layout of the published folder::

    train.txt, val.txt, test.txt     names of the images of a split, one a line
    Sentences/1000092795.txt         '[/EN#1/people Two young guys] are in [/EN#2/scene the yard] .'
    Annotations/1000092795.xml       size of the image, and boxes with the numbers of what they show

Reading order: FlickrEntitiesDataset, parse_sentence, read_boxes.
"""

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...registry import DATASETS
from .dataset import GroundingDataset

_MARK = re.compile(r'\[/EN#(\d+)((?:/[^\s/\]]+)*)\s+([^\]]*)\]')
_SIZE = ('height', 'width')
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class MarkedPhrase(NamedTuple):
    """A phrase of a sentence: characters [start, end), the number of what it names, and its types."""

    start: int
    end: int
    entity: str
    types: tuple[str, ...]


@DATASETS.register_module()
class FlickrEntitiesDataset(GroundingDataset):
    """Flickr30k Entities, a sample per sentence.

    Every marked phrase that has boxes is a phrase of its own, also where several name one thing; phrases of
    what has none (scenes, what is not visible) have no entry. ``phrase_types`` has 'people', 'clothing' ...
    of each. Words stay as they are written, with blanks before commas and full stops.

    Args:
        ann_file: the split, such as ``train.txt``.
        entities: folder of ``Sentences`` and ``Annotations``, by default that of ``ann_file``.
        suffix: of the image files.
        kwargs: see ``GroundingDataset``; ``data_prefix`` has the folder of the images under ``img``.
    Raises:
        FileNotFoundError: a sentence or annotation file of an image does not exist.
        ValueError: brackets that are no mark, or XML that cannot be read; the message has file and line.

    Source: Plummer et al., "Flickr30k Entities", ICCV 2015. A box names its first and last pixel, counted
        from 1, and becomes [xmin - 1, ymin - 1, xmax, ymax].
    """

    def __init__(
        self,
        *args: Any,
        entities: str | os.PathLike[str] | None = None,
        suffix: str = '.jpg',
        **kwargs: Any,
    ) -> None:
        self.entities = entities
        self.suffix = suffix
        super().__init__(*args, **kwargs)

    def _records(self, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = file.parent if self.entities is None else Path(self.entities)
        for name in file.read_text(encoding='utf-8').split():
            image, boxes = read_boxes(folder / 'Annotations' / f'{name}.xml')
            sentences = folder / 'Sentences' / f'{name}.txt'
            if not sentences.is_file():
                raise FileNotFoundError(f'{sentences} does not exist: sentences of image {name} of {file}')
            for number, line in enumerate(sentences.read_text(encoding='utf-8').splitlines(), 1):
                if not line.strip():
                    continue
                where = f'{sentences}, line {number}'
                caption, phrases = parse_sentence(line.strip(), where)
                regions = [
                    {
                        'phrase': caption[phrase.start : phrase.end],
                        'tokens_positive': [[phrase.start, phrase.end]],
                        'bbox': boxes[phrase.entity],
                        'types': phrase.types,
                    }
                    for phrase in phrases
                    if boxes.get(phrase.entity)
                ]
                grounding = {'caption': caption, 'regions': regions}
                yield where, {'filename': f'{name}{self.suffix}', **image, 'grounding': grounding}


def parse_sentence(line: str, where: str) -> tuple[str, list[MarkedPhrase]]:
    """A marked sentence -> its words, and the phrases with their places in them.

    Raises:
        ValueError: a mark without words or without its closing bracket; ``where`` is in the message.
    """
    text, phrases, position = '', [], 0
    for mark in _MARK.finditer(line):
        text += line[position : mark.start()]
        words = mark[3].strip()
        if not words:
            raise ValueError(f'{where}: the mark {mark[0]!r} has no words')
        phrases.append(
            MarkedPhrase(len(text), len(text) + len(words), mark[1], tuple(mark[2].split('/')[1:]))
        )
        text += words
        position = mark.end()
    text += line[position:]
    if '[/EN#' in text:
        raise ValueError(f'{where}: {text[text.index("[/EN#") :][:40]!r} is no complete mark')
    return text, phrases


def read_boxes(file: Path) -> tuple[dict[str, int], dict[str, list[list[float]]]]:
    """Height and width of an image, and by number the boxes [x1, y1, x2, y2] of what is in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no XML, or a size or box without numbers.
    """
    if not file.is_file():
        raise FileNotFoundError(f'annotation file {file} does not exist')
    boxes: dict[str, list[list[float]]] = {}
    try:
        root = ElementTree.parse(file).getroot()
        size = {key: int(root.findtext(f'size/{key}') or '') for key in _SIZE}
        for item in root.findall('object'):
            box = item.find('bndbox')
            if box is None:
                continue
            x1, y1, x2, y2 = (float(box.findtext(key) or '') for key in _CORNERS)
            for name in item.findall('name'):
                boxes.setdefault((name.text or '').strip(), []).append([x1 - 1, y1 - 1, x2, y2])
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f'annotation file {file} cannot be read: {error}') from None
    return size, boxes
