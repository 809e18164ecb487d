"""Sentences with boxes in MDETR's JSON layout: the phrases of Flickr30k Entities, referring expressions.

Reading order: SentenceDataset (what both share), PhraseSentences, ReferringExpressions.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from ...options import check_option
from ...registry import DATASETS
from ...text.phrases import caption_prompt
from ..annotations import shorten
from ..images import find_missing
from ..sample_traits import SampleTraits

_KEYS: dict[str, dict[str, Any]] = {
    'images': {
        'id': (int, str),
        'file_name': str,
        'height': (int, float),
        'width': (int, float),
        'caption': str,
    },
    'annotations': {'image_id': (int, str), 'bbox': list},
}


class SentenceDataset(SampleTraits, BaseDataset):
    """Base of data with one image entry per sentence.

    Samples give ``text`` (the sentence), ``tokens_positive`` (label -> character ranges) and boxes with such
    labels; ``img_id`` is the id of the entry. A phrase whose boxes are all left out is not asked for.

    Args:
        only: read only entries with this ``dataset_name``, where a file mixes several.
        bad_regions: 'refuse' or 'drop' boxes without area or outside their image, and ranges that do not fit
            their sentence.
        missing_images: 'refuse', or leave it 'unchecked'.
        kwargs: see ``mmengine.dataset.BaseDataset``; ``data_prefix`` has the key ``img``.
    Raises:
        FileNotFoundError: no such file, or images that are not on disk.
        ValueError: not such a file, an entry that lacks a key, a bad region; the message has the entry.

    Source of the format: Kamath et al., "MDETR", ICCV 2021 (released annotations).
    """

    METAINFO: dict[str, Any] = {}
    provides_class_names = True  # sentences bring what is asked for

    def __init__(
        self,
        *args: Any,
        only: str | None = None,
        bad_regions: str = 'refuse',
        missing_images: str = 'refuse',
        **kwargs: Any,
    ) -> None:
        check_option('bad_regions', bad_regions, ('refuse', 'drop'))
        check_option('missing_images', missing_images, ('refuse', 'unchecked'))
        self.only = only
        self.bad_regions = bad_regions
        self.missing_images = missing_images
        super().__init__(*args, **kwargs)

    def phrases(
        self, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[dict[int, list[list[int]]], list[list[int]]]:
        """Ranges of each label, and the labels of each object."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict[str, Any]]:
        content = _read(Path(self.ann_file))
        self._metainfo.update(ann_file=str(self.ann_file))
        objects: dict[Any, list[dict[str, Any]]] = {}
        for item in content['annotations']:
            objects.setdefault(item['image_id'], []).append(item)
        left_out: Counter[str] = Counter()
        data_list = []
        for image in content['images']:
            if self.only is None or image.get('dataset_name') == self.only:
                data_list.append(self._sample(image, objects.get(image['id'], []), left_out))
        if not data_list:
            names = sorted({str(image.get('dataset_name')) for image in content['images']})
            wanted = 'no sentences' if self.only is None else f'no sentences of {self.only!r}'
            raise ValueError(f'{self.ann_file} has {wanted}; it has {shorten(names) or "nothing"}')
        if self.missing_images == 'refuse':
            missing = find_missing([info['img_path'] for info in data_list])
            if missing:
                raise FileNotFoundError(
                    f'{self.ann_file}: {len(missing)} images are not on disk, the first is {missing[0]}'
                )
        if left_out:
            counts = ', '.join(f'{count} {what}' for what, count in left_out.items())
            MMLogger.get_current_instance().warning(f'{self.ann_file}: left out {counts}')
        return data_list

    def _sample(
        self, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], left_out: Counter[str]
    ) -> dict[str, Any]:
        where = f'{self.ann_file}: image {image["id"]}'
        spans, labels = self.phrases(image, objects, where)
        kept: dict[int, list[list[int]]] = {}
        for label, ranges in spans.items():
            try:
                prompt = caption_prompt(image['caption'], {label: ranges})
            except ValueError as error:
                self._refuse(f'{where}: {error}')
                left_out['phrases with bad ranges'] += 1
            else:
                kept[label] = [list(span) for span in prompt.spans[0]]
        instances = []
        for item, own in zip(objects, labels):
            box = self._box(item, image, where, left_out)
            instances += [
                {'bbox': box, 'bbox_label': label, 'ignore_flag': 0} for label in own if box and label in kept
            ]
        boxed = {instance['bbox_label'] for instance in instances}
        return {
            'img_path': os.path.join(self.data_prefix.get('img', ''), image['file_name']),
            'img_id': image['id'],
            'height': image['height'],
            'width': image['width'],
            'text': image['caption'],
            'tokens_positive': {label: ranges for label, ranges in kept.items() if label in boxed},
            'instances': instances,
        }

    def _box(
        self, item: Mapping[str, Any], image: Mapping[str, Any], where: str, left_out: Counter[str]
    ) -> list[float] | None:
        """[x1, y1, x2, y2], not clipped."""
        box = item['bbox']
        if len(box) != 4 or not all(isinstance(n, int | float) and math.isfinite(n) for n in box):
            raise ValueError(f'{where}: expected a box [x, y, width, height], got {box!r}')
        x, y, width, height = box
        inside = x < image['width'] and y < image['height'] and x + width > 0 and y + height > 0
        if width > 0 and height > 0 and inside:
            return [x, y, x + width, y + height]
        self._refuse(
            f'{where}: box {item["bbox"]} has no area in the image of '
            f'{image["width"]} x {image["height"]} pixels'
        )
        left_out['boxes outside their image'] += 1
        return None

    def _refuse(self, message: str) -> None:
        if self.bad_regions == 'refuse':
            raise ValueError(f"{message} (bad_regions='drop' leaves such regions out)")


@DATASETS.register_module()
class PhraseSentences(SentenceDataset):
    """Captions whose phrases have boxes, as in ``final_flickr_separateGT_val.json``.

    An entry's ``tokens_positive_eval`` lists its phrases; ``phrase_ids`` of a box says which it shows. Where
    these are no places in that list, they are numbers of another count and stand for it in rising order.
    """

    def phrases(
        self, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[dict[int, list[list[int]]], list[list[int]]]:
        if 'tokens_positive_eval' not in image:
            raise ValueError(f"{where} has no 'tokens_positive_eval'")
        phrases = image['tokens_positive_eval']
        if not isinstance(phrases, list):
            raise ValueError(f'{where}: tokens_positive_eval is {phrases!r}, expected a list of phrases')
        spans = dict(enumerate(phrases))
        if any('phrase_ids' not in item for item in objects):
            raise ValueError(f"{where}: a box has no 'phrase_ids'")
        found = [item['phrase_ids'] for item in objects]
        ids = [numbers if isinstance(numbers, list) else [numbers] for numbers in found]
        if wrong := [given for given, own in zip(found, ids) if not all(isinstance(n, int) for n in own)]:
            raise ValueError(f'{where}: phrase_ids is {wrong[0]!r}, expected whole numbers')
        places = {number: number for number in spans}
        numbers = sorted({number for group in ids for number in group})
        if not set(numbers) <= set(places):
            if len(numbers) != len(spans):
                raise ValueError(
                    f'{where}: its boxes have phrase_ids {numbers}, its sentence {len(spans)} phrases'
                )
            places = {number: place for place, number in enumerate(numbers)}
        return spans, [[places[number] for number in group] for group in ids]


@DATASETS.register_module()
class ReferringExpressions(SentenceDataset):
    """Sentences that each mean one object, as in ``finetune_refcoco_testA.json``: the whole is label 0."""

    def phrases(
        self, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[dict[int, list[list[int]]], list[list[int]]]:
        sentence: str = image['caption']
        start = len(sentence) - len(sentence.lstrip())
        return {0: [[start, len(sentence.rstrip())]]}, [[0]] * len(objects)


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    if not file.is_file():
        raise FileNotFoundError(f'annotation file {file} does not exist')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'annotation file {file} is not valid JSON: {error}') from None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ('images', 'annotations')
    ):
        raise ValueError(f"annotation file {file} is not in MDETR's layout: no lists of images, annotations")
    for kind, keys in _KEYS.items():
        for number, item in enumerate(content[kind]):
            where = f'{file}: number {number} of the {kind}'
            if not isinstance(item, dict):
                raise ValueError(f'{where} is {item!r:.40}, expected an object')
            if absent := [key for key in keys if key not in item]:
                raise ValueError(f'{where} has no {absent[0]!r}')
            if wrong := [key for key, type_ in keys.items() if not isinstance(item[key], type_)]:
                raise ValueError(f'{where}: {wrong[0]!r} is {item[wrong[0]]!r:.40}')
    known = {image['id'] for image in content['images']}
    if len(known) < len(content['images']):
        raise ValueError(f'{file}: some images share an id')
    for number, item in enumerate(content['annotations']):
        if item['image_id'] not in known:
            raise ValueError(
                f'{file}: number {number} of the annotations is of no image: {item["image_id"]!r}'
            )
    return content
