"""Grounding data: captions with boxes per phrase, and class lists drawn for each image.

Reading order: GroundingDataset (ODVG files); Flickr30k Entities is in ``flickr_entities.py``, COCO instances
with captions in ``coco_grounding.py``. What training does to sentences is in ``grounding_transforms.py``.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from ...options import check_option
from ...registry import DATASETS
from ...text.nouns import NameMatcher
from ...text.phrases import caption_prompt
from ...text.vocabulary import Vocabulary
from ..images import find_missing
from ..sample_traits import SampleTraits

_MIN_SIDE = 1.0  # pixels; thinner boxes are left out, as by mmdet
_KEYS: dict[str, Any] = {'filename': str, 'height': (int, float), 'width': (int, float)}
_WORD = re.compile(r'[^\W_]+')


@DATASETS.register_module()
class GroundingDataset(SampleTraits, BaseDataset):
    """ODVG lines, one JSON object each: captions with phrases, or, with a label map, detection.

    A caption gives ``text``, ``tokens_positive`` (label -> character ranges) and boxes whose labels are
    places in its list of regions; regions without a box that is left have no entry. Detection gives boxes
    whose labels index the vocabulary. Boxes that a model found keep their ``score``. ``img_id`` is the number
    of the line, from 0.

    Args:
        label_map: JSON file {"0": "person", ...}; makes this detection data.
        vocabulary: any spelling of ``Vocabulary.parse``: the labels of detection data (by default the label
            map's names), and what is novel.
        novel_boxes: 'keep' or 'drop' boxes of novel classes, or of phrases that name one; 'pseudo' drops true
            boxes only and keeps those with a score, which a model found. The characters of a phrase that lost
            its boxes so are in ``tokens_ignored``: what the phrase says is in the image, and its words must
            not count as absent.
        min_score: lowest score of a box that has one (pseudo labels; true boxes have none). Phrases without
            a box that is left are ignored likewise, and so are those that the line itself lists as
            ``tokens_ignored``.
        bad_regions: 'refuse' or 'drop' boxes outside their image, and ranges that do not fit their caption or
            hold other words than the region's ``phrase``.
        missing_images: 'refuse', or leave it 'unchecked'.
        shuffle_captions: ask for every phrase's box with the words of another picture's caption that has as
            many phrases: a control, what boxes score when words say nothing.
        kwargs: see ``mmengine.dataset.BaseDataset``; ``data_prefix`` has the key ``img``.
    Raises:
        ValueError: a line that is no JSON object or lacks its mode, a bad region; the message has the line.

    Source of the format: open-mmlab/mmdetection: configs/mm_grounding_dino.
    """

    METAINFO: dict[str, Any] = {}
    provides_class_names = True  # captions bring what is asked for
    sample_keys: tuple[str, ...] = ('text', 'tokens_positive', 'tokens_ignored')

    def __init__(
        self,
        *args: Any,
        label_map: str | os.PathLike[str] | None = None,
        vocabulary: Any = None,
        novel_boxes: str = 'keep',
        min_score: float = 0.0,
        bad_regions: str = 'refuse',
        missing_images: str = 'refuse',
        shuffle_captions: bool = False,
        **kwargs: Any,
    ) -> None:
        check_option('novel_boxes', novel_boxes, ('keep', 'drop', 'pseudo'))
        check_option('bad_regions', bad_regions, ('refuse', 'drop'))
        if not 0 <= min_score <= 1:
            raise ValueError(f'min_score is {min_score}, expected 0 to 1')
        check_option('missing_images', missing_images, ('refuse', 'unchecked'))
        self.label_map = label_map
        self.provides_class_names = label_map is None
        if label_map is not None:
            self.sample_keys = ()
        self.vocabulary = None if vocabulary is None else Vocabulary.parse(vocabulary)
        if novel_boxes != 'keep' and not (self.vocabulary and any(self.vocabulary.is_novel)):
            raise ValueError(f'novel_boxes={novel_boxes!r} needs a vocabulary with novel classes')
        self.novel_boxes = novel_boxes
        self.min_score = min_score
        self._matcher = None if self.vocabulary is None else NameMatcher(self.vocabulary)
        self.bad_regions = bad_regions
        self.missing_images = missing_images
        self.shuffle_captions = shuffle_captions
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        file = Path(self.ann_file)
        if not file.is_file():
            raise FileNotFoundError(f'annotation file {file} does not exist')
        labels = self._read_label_map()
        left_out: Counter[str] = Counter()
        if self.test_mode:  # in training, sets that are joined would differ in it
            self._metainfo.update(ann_file=str(file))
        data_list: list[dict[str, Any]] = []
        for where, record in self._records(file):
            info = {
                'img_path': os.path.join(self.data_prefix.get('img', ''), record['filename']),
                'img_id': len(data_list),
                'height': record['height'],
                'width': record['width'],
            }
            if labels is None:
                info |= self._caption(record, where, left_out)
            else:
                info |= self._detection(record, where, labels, left_out)
            data_list.append(info)
        if not data_list:
            raise ValueError(f'{file} has no samples')
        if self.missing_images == 'refuse':
            missing = find_missing([info['img_path'] for info in data_list])
            if missing:
                raise FileNotFoundError(
                    f'{file}: {len(missing)} images are not on disk, the first is {missing[0]}'
                )
        if left_out.total():
            counts = ', '.join(f'{count} {what}' for what, count in left_out.items() if count)
            MMLogger.get_current_instance().info(f'{file}: left out {counts}')
        return exchange_captions(data_list) if self.shuffle_captions else data_list

    def _records(self, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Samples as ODVG writes them, each with its place in the file, for messages."""
        with file.open(encoding='utf-8-sig') as stream:
            try:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield f'{file}, line {number}', _read_line(line, file, number)
            except UnicodeDecodeError as error:
                raise ValueError(f'annotation file {file} is not UTF-8: {error.reason}') from None

    def _read_label_map(self) -> list[int] | None:
        """Label in the vocabulary of each label of the file; None for captions."""
        if self.label_map is None:
            return None
        if not os.path.isfile(self.label_map):
            raise FileNotFoundError(f'label map {self.label_map} does not exist')
        try:
            content = json.loads(Path(self.label_map).read_text(encoding='utf-8-sig'))
        except ValueError as error:
            raise ValueError(f'{self.label_map} is not JSON: {error}') from None
        if not isinstance(content, dict) or sorted(content) != sorted(map(str, range(len(content)))):
            raise ValueError(f'{self.label_map}: expected {{"0": name, "1": name, ...}} without gaps')
        names = [str(content[str(label)]) for label in range(len(content))]
        if self.vocabulary is None:
            self.vocabulary = Vocabulary(names)
        known = {name: label for label, name in enumerate(self.vocabulary.names)}
        unknown = [name for name in names if name.strip() not in known]
        if unknown:
            raise ValueError(f'{self.label_map}: the vocabulary has no class {unknown[0]!r}')
        self._metainfo.update(classes=self.vocabulary.labels)
        return [known[name.strip()] for name in names]

    def _caption(self, record: Mapping[str, Any], where: str, left_out: Counter[str]) -> dict[str, Any]:
        if 'grounding' not in record:
            raise ValueError(
                f"{where} has no 'grounding'; detection data need label_map=, a file of their names"
            )
        grounding = record['grounding']
        caption = grounding.get('caption') if isinstance(grounding, Mapping) else None
        if not isinstance(caption, str):
            raise ValueError(f"{where}: the caption of 'grounding' is {caption!r:.40}, expected a text")
        instances, spans, types = [], {}, {}
        ignored = self._ignored(record, where, left_out)
        for label, region in enumerate(_entries(grounding, 'regions', where)):
            boxes = _read_boxes(region, f'{where}: region {label}')
            scores = _scores(region, len(boxes), where)
            try:
                prompt = caption_prompt(caption, {label: region.get('tokens_positive')})
                _check_words(region.get('phrase'), prompt.names[0], label)
            except ValueError as error:
                self._refuse(f'{where}: {error}')
                left_out['phrases with bad ranges'] += 1
                continue
            ranges = [list(span) for span in prompt.spans[0]]
            if (scores is None or self.novel_boxes == 'drop') and self._names_novel(prompt.names[0]):
                ignored += ranges
                left_out['phrases of novel classes'] += 1
                continue
            if scores is not None and len(boxes):
                good = scores >= self.min_score
                boxes, scores = boxes[good], scores[good]
                left_out['boxes of low scores'] += int((~good).sum())
                if not len(boxes):
                    ignored += ranges
                    continue
            kept = self._boxes(boxes.tolist(), scores, label, record, where, left_out)
            if kept:
                spans[label] = ranges
                instances += kept
                if region.get('types'):
                    types[label] = list(region['types'])
        info = {'text': caption, 'tokens_positive': spans, 'instances': instances}
        extra = {'tokens_ignored': ignored, 'phrase_types': types}
        return info | {key: value for key, value in extra.items() if value}

    def _ignored(self, record: Mapping[str, Any], where: str, left_out: Counter[str]) -> list[list[int]]:
        """Ranges that the line itself marks as ignored."""
        grounding, kept = record['grounding'], []
        for span in _entries(grounding, 'tokens_ignored', where):
            try:
                kept += [list(pair) for pair in caption_prompt(grounding['caption'], [[span]]).spans[0]]
            except ValueError as error:
                self._refuse(f'{where}, tokens_ignored: {error}')
                left_out['phrases with bad ranges'] += 1
        return kept

    def _names_novel(self, phrase: str) -> bool:
        """Whether a phrase is to lose its boxes."""
        if self.novel_boxes == 'keep' or self._matcher is None or self.vocabulary is None:
            return False
        labels = (noun.label for noun in self._matcher.find(phrase))
        return any(label is not None and self.vocabulary.is_novel[label] for label in labels)

    def _detection(
        self, record: Mapping[str, Any], where: str, labels: Sequence[int], left_out: Counter[str]
    ) -> dict[str, Any]:
        if 'grounding' in record:
            raise ValueError(f"{where} has 'grounding', but the data set is detection: it has a label_map")
        instances = []
        for place, instance in enumerate(_entries(record.get('detection') or {}, 'instances', where)):
            boxes = _read_boxes(instance, f'{where}: instance {place}')
            scores = _scores(instance, len(boxes), where)
            if instance.get('label') not in range(len(labels)):
                raise ValueError(f'{where}: label {instance.get("label")!r} is not in {self.label_map}')
            label = labels[int(instance['label'])]
            hidden = self.novel_boxes == 'drop' or (self.novel_boxes == 'pseudo' and scores is None)
            if hidden and self.vocabulary and self.vocabulary.is_novel[label]:
                left_out['boxes of novel classes'] += 1
            elif scores is not None and (scores < self.min_score).all():
                left_out['boxes of low scores'] += 1
            else:
                instances += self._boxes(boxes.tolist(), scores, label, record, where, left_out)
        return {'instances': instances}

    def _boxes(
        self,
        boxes: Sequence[Sequence[float]],
        scores: np.ndarray | None,
        label: int,
        record: Mapping[str, Any],
        where: str,
        left_out: Counter[str],
    ) -> list[dict[str, Any]]:
        """The boxes that can be trained on; not clipped."""
        kept = []
        for place, (x1, y1, x2, y2) in enumerate(boxes):
            inside_width = min(x2, record['width']) - max(x1, 0)
            inside_height = min(y2, record['height']) - max(y1, 0)
            if not (inside_width > 0 and inside_height > 0):
                what = 'is not in' if x2 > x1 and y2 > y1 else '[x1, y1, x2, y2] has no area in'
                self._refuse(
                    f'{where}: box {[x1, y1, x2, y2]} {what} the image of '
                    f'{record["width"]} x {record["height"]} pixels'
                )
                left_out['boxes outside their image'] += 1
            elif x2 - x1 < _MIN_SIDE or y2 - y1 < _MIN_SIDE:
                left_out['boxes under one pixel'] += 1
            else:
                box = {'bbox': [x1, y1, x2, y2], 'bbox_label': label, 'ignore_flag': 0}
                kept.append(box if scores is None else box | {'score': float(scores[place])})
        return kept

    def _refuse(self, message: str) -> None:
        if self.bad_regions == 'refuse':
            raise ValueError(f"{message} (bad_regions='drop' leaves such regions out)")


def exchange_captions(data_list: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Samples whose phrases, one by one, have the words of another picture's caption with as many phrases.

    A caption stays where no other picture has one with as many phrases.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for index, info in enumerate(data_list):
        alike[len(info['tokens_positive'])].append(index)
    generator = np.random.default_rng(seed)
    exchanged = []
    for info in data_list:
        others = alike[len(info['tokens_positive'])]
        start = int(generator.integers(len(others)))
        order = (data_list[index] for index in [*others[start:], *others[:start]])
        other = next((one for one in order if one['img_path'] != info['img_path']), info)
        spans = dict(zip(info['tokens_positive'], other['tokens_positive'].values()))
        exchanged.append({**info, 'text': other['text'], 'tokens_positive': spans})
    return exchanged


def _read_line(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{file}, line {number} is not JSON: {error}') from None
    if not isinstance(record, dict):
        raise ValueError(f'{file}, line {number} is {record!r:.40}, expected an object')
    for key, kind in _KEYS.items():
        if key not in record:
            raise ValueError(f'{file}, line {number} has no {key!r}')
        if not isinstance(record[key], kind):
            raise ValueError(f'{file}, line {number}: {key!r} is {record[key]!r:.40}')
    return record


def _entries(parent: Any, key: str, where: str) -> list[Any]:
    """A list of an object; absent and null are none."""
    entries = parent.get(key) if isinstance(parent, Mapping) else parent
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise ValueError(f'{where}: expected a list of {key}, got {entries!r:.60}')
    return entries


def _read_boxes(region: Any, where: str) -> np.ndarray:
    """Boxes [N, 4] of a region, which has one or a list of them.

    Raises:
        ValueError: not such boxes, or no object.
    """
    given = region.get('bbox') if isinstance(region, Mapping) else region
    try:
        boxes: np.ndarray = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        boxes = np.zeros(())
    if boxes.size == 0 and given == []:
        return np.zeros((0, 4))
    is_shaped = boxes.ndim in (1, 2) and boxes.shape[-1] == 4 and isinstance(region, Mapping)
    if not is_shaped or not np.isfinite(boxes).all():
        raise ValueError(f"{where}: expected 'bbox', [x1, y1, x2, y2] or a list of such, got {given!r:.60}")
    return boxes.reshape(-1, 4)


def _scores(region: Mapping[str, Any], count: int, where: str) -> np.ndarray | None:
    """Scores [count] of a region's boxes, nested or not; None where they are true boxes."""
    if region.get('score') is None:
        return None
    try:
        scores = np.asarray(region['score'], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ValueError(f'{where}: expected a score for each box, got {region["score"]!r:.60}') from None
    if len(scores) != count:
        raise ValueError(f'{where}: {len(scores)} scores came with {count} boxes')
    return scores


def _check_words(phrase: Any, said: str, label: int) -> None:
    """Refuse a region whose characters hold other words than its phrase, if it has one."""
    given = ' '.join(map(str, phrase)) if isinstance(phrase, list) else phrase
    if isinstance(given, str) and _words(given) != _words(said):
        raise ValueError(f'phrase {label} is {given!r}, its characters are {said!r}')


def _words(text: str) -> list[str]:
    """Words without regard to order, capital letters and signs between them."""
    return sorted(_WORD.findall(text.casefold()))
