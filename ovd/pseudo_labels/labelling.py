"""Pseudo labels: a trained model (teacher) labels the phrases of captions, to train the next model (student).

The images are split into parts, in the order of the data set. A part depends on its own images only and is
renamed atomically: a killed job continues with the missing parts, on any number of processes, and ends in the
same bytes. Ranks do not communicate: the last one to finish joins the parts.

Reading order: PseudoLabelling (opens a config section; start, run). The boxes to keep: selection.py.
"""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from ..caching.clip_regions import key_problems
from ..config import load_config
from ..config.values import COUNT, SHARE, describe
from ..datasets.captions.dataset import CaptionDataset, SkipCounter
from ..datasets.grounding.dataset import GroundingDataset
from ..datasets.images import BrokenImageError
from ..files import atomic_path, require_file, sha256_file, sha256_json, write_json
from ..inference.predictor import Predictor
from ..options import check_option
from ..registry import DATASETS
from ..text.nouns import NounExtractor
from ..threads import map_ahead
from ..version import __version__
from .selection import CaptionTask, Ranges, Selection, grounding_task, label_image

_FORMAT = 'ovd.pseudo_labels/1'
_REQUIRED = ('out', 'teacher', 'captions')
_SELECTION = ('score_thr', 'max_boxes', 'phrase_nms')
_SECTION = (*_REQUIRED, *_SELECTION, 'nouns', 'images_per_part', 'broken_images')
_LIMITS = {'score_thr': SHARE, 'phrase_nms': SHARE, 'max_boxes': COUNT, 'images_per_part': COUNT}
_TEACHER = ('config', 'checkpoint')


class PseudoLabelling:
    """Opens a ``pseudo_labels`` section of a config; then call ``start`` and ``run``.

    Args:
        section: ``out``, the ODVG file to write; ``teacher`` (``config``, ``checkpoint``); ``captions``, a
            ``CaptionDataset``, whose noun phrases are found by ``nouns`` (arguments of ``NounExtractor``),
            in all captions of an image unless it has captions='first', or a ``GroundingDataset``, whose
            boxes are kept and whose ignored phrases are labelled; the arguments of ``Selection``;
            ``images_per_part``, the work that a killed job repeats; ``broken_images``, 'refuse' or 'drop'
            (and count) images that cannot be read.
        device: of the teacher.
        limit: number of images, from the first on.
    Raises:
        FileNotFoundError, ValueError: missing or unknown keys and files of the section.
    """

    def __init__(self, section: Mapping[str, Any], device: str | None = None, limit: int | None = None):
        check_section(section)
        self.out = Path(section['out'])
        self.parts = self.out.with_name(f'{self.out.name}.parts')
        self.selection = Selection(**{key: section[key] for key in _SELECTION if key in section})
        self.broken_images = section.get('broken_images', 'refuse')
        check_option('broken_images', self.broken_images, ('refuse', 'drop'))
        self._dropped = SkipCounter('images')
        self.dataset = DATASETS.build({**section['captions'], 'pipeline': [], 'test_mode': True})
        if not isinstance(self.dataset, CaptionDataset | GroundingDataset):
            raise ValueError(
                f'pseudo_labels.captions is a {type(self.dataset).__name__}, expected a CaptionDataset or a '
                'GroundingDataset'
            )
        self.nouns = None
        self._captions = slice(1 if section['captions'].get('captions') == 'first' else None)
        if isinstance(self.dataset, CaptionDataset):
            self.nouns = NounExtractor(**{'phrases': True, **(section.get('nouns') or {})})
        images = group_by_image(self.dataset)[:limit]
        size = int(section.get('images_per_part', 64))
        self.plan = [images[start : start + size] for start in range(0, len(images), size)]
        config = load_config(section['teacher']['config'])
        checkpoint = section['teacher']['checkpoint']
        self.teacher = Predictor(config, checkpoint, device)
        if not self.teacher.model.reads_sentences:
            raise ValueError(
                f'pseudo_labels.teacher is a {type(self.teacher.model).__name__}, which does not read '
                'captions; use a model such as GLIP'
            )
        self.settings = _plain(
            {
                'format': _FORMAT,
                'weights_sha256': sha256_file(checkpoint),
                'teacher_sha256': sha256_json(
                    _plain([config.model, config.test_dataloader.dataset.get('pipeline')])
                ),
                'captions': section['captions'],
                'captions_sha256': sha256_file(self.dataset.ann_file) if self.dataset.ann_file else None,
                'nouns': section.get('nouns'),
                'nouns_found_by': self.nouns.backend if self.nouns else None,
                'selection': vars(self.selection),
                'images': len(images),
                'images_per_part': size,
            }
        )
        self.made_with = _plain(
            {
                'code_version': __version__,
                'torch': torch.__version__,
                'device': self.teacher.device.type,
                **section['teacher'],
            }
        )

    @property
    def manifest_path(self) -> Path:
        """File beside the labels that records how they were made."""
        return self.out.with_suffix('.manifest.json')

    @property
    def num_images(self) -> int:
        """Number of images of all parts."""
        return sum(map(len, self.plan))

    @property
    def num_finished(self) -> int:
        """Number of parts on disk, of all ranks."""
        return sum(self._part(index).is_file() for index in range(len(self.plan)))

    def start(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Parts that this rank has to label; none if the labels are complete.

        Raises:
            ValueError: there are labels of other settings (which are named).
        """
        if self._finished() is not None:
            return []
        header = self.parts / 'header.json'
        if header.is_file():
            self._compare(json.loads(header.read_text(encoding='utf-8')), self.parts)
        else:
            write_json(header, self.settings)
        return [index for index in range(rank, len(self.plan), world_size) if not self._part(index).is_file()]

    def run(
        self, pending: Sequence[int], on_image: Callable[[int], None] | None = None, workers: int = 0
    ) -> dict[str, Any] | None:
        """Label the pending parts; join the parts once all exist.

        Args:
            pending: from ``start``.
            on_image: called with the number of pseudo boxes of each image, for a progress bar.
            workers: number of loading threads; 0 loads in the main thread.
        Returns:
            the manifest, or None while other ranks have parts to label.
        Raises:
            FileNotFoundError, BrokenImageError: an image cannot be read, and broken images are not dropped;
                finished parts are kept, and the next run continues.
        """
        for index in pending:
            self.teacher.model.eval()  # clears cached captions: a part must not depend on earlier ones
            lines: list[dict[str, Any]] = []
            images = [(self._path(rows), rows) for rows in self.plan[index]]
            tasks = map_ahead(lambda image: (*image, self._load(image[0])), images, workers)
            for path, rows, loaded in tasks:
                made = [{'broken': path}] if loaded is None else self._label(path, rows, *loaded)
                lines += made
                if on_image is not None:
                    on_image(sum(_count(line)['pseudo_boxes'] for line in made))
            with atomic_path(self._part(index)) as temporary:
                temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
        return self._join()

    def _tasks(self, rows: Sequence[int]) -> list[CaptionTask]:
        """Captions of an image, with the phrases to label."""
        infos = [self.dataset.get_data_info(row) for row in rows]
        if self.nouns is None:
            tasks = [grounding_task(info) for info in infos]
            return [replace(task, to_label=self._readable(task.text, task.to_label)) for task in tasks]
        texts = [' '.join(text.split()) for info in infos for text in info['captions'][self._captions]]
        return [
            CaptionTask(
                text,
                (),
                self._readable(text, [[[noun.start, noun.end]] for noun in self.nouns.extract(text)]),
            )
            for text in texts
        ]

    def _readable(self, text: str, phrases: Sequence[Ranges]) -> tuple[Ranges, ...]:
        """The phrases that the teacher can encode, see ``GLIP.readable_phrases``."""
        return tuple(self.teacher.model.readable_phrases(text, phrases))

    def _path(self, rows: Sequence[int]) -> str:
        path: str = self.dataset.get_data_info(rows[0])['img_path']
        return path

    def _filename(self, path: str) -> str:
        """Path of an image relative to the image folder of its data set."""
        prefix = self.dataset.data_prefix
        folder = prefix.get('img_path') or prefix.get('img') or ''
        return Path(os.path.relpath(path, folder) if folder else path).as_posix()

    def _load(self, path: str) -> tuple[Tensor, DetDataSample] | None:
        """Load the teacher's input; None for a broken image that is dropped."""
        try:
            return self.teacher.prepare(path)
        except (BrokenImageError, FileNotFoundError) as error:
            if self.broken_images == 'refuse':
                hint = "pseudo_labels.broken_images='drop' skips such images"
                raise type(error)(f'{error} ({hint})') from None
            self._dropped.add('broken', str(error))
            return None

    def _label(
        self, path: str, rows: Sequence[int], inputs: Tensor, sample: DetDataSample
    ) -> list[dict[str, Any]]:
        """ODVG lines of an image."""
        found = label_image(self.teacher.model, inputs, sample, self._tasks(rows), self.selection)
        height, width = map(int, sample.ori_shape)
        header = {'filename': self._filename(path), 'height': height, 'width': width}
        return [{**header, 'grounding': line} for line in found]

    def _part(self, index: int) -> Path:
        return self.parts / f'part-{index:06d}.jsonl'

    def _finished(self) -> dict[str, Any] | None:
        """Manifest of complete labels with these settings, or None."""
        if not (self.out.is_file() and self.manifest_path.is_file()):
            return None
        manifest: dict[str, Any] = json.loads(self.manifest_path.read_text(encoding='utf-8'))
        self._compare(manifest.get('settings', {}), self.out)
        return manifest

    def _compare(self, recorded: Mapping[str, Any], where: Path) -> None:
        keys = sorted({*recorded, *self.settings})
        changed = [key for key in keys if recorded.get(key) != self.settings.get(key)]
        if changed:
            raise ValueError(
                f'{where} was made with other settings ({", ".join(changed)}): delete it or choose another '
                'file'
            )

    def _join(self) -> dict[str, Any] | None:
        """Write labels and manifest once all parts exist."""
        if (manifest := self._finished()) is not None:
            shutil.rmtree(
                self.parts, ignore_errors=True
            )  # left over if a job was killed just before removing them
            return manifest
        if self.num_finished < len(self.plan):
            return None
        counts: Counter[str] = Counter(
            lines=0, true_boxes=0, pseudo_boxes=0, pseudo_phrases=0, left_phrases=0
        )
        try:
            with atomic_path(self.out) as temporary, temporary.open('w', encoding='utf-8') as stream:
                for index in range(len(self.plan)):
                    for line in self._part(index).read_text(encoding='utf-8').splitlines(keepends=True):
                        content = json.loads(line)
                        counts.update(_count(content))
                        if 'grounding' in content:
                            stream.write(line)
        except FileNotFoundError:  # another rank has just joined them
            if (manifest := self._finished()) is None:
                raise
            return manifest
        manifest = {
            'settings': self.settings,
            'made_with': self.made_with,
            'counts': dict(counts),
            'sha256': sha256_file(self.out),
        }
        write_json(self.manifest_path, manifest)
        shutil.rmtree(self.parts, ignore_errors=True)
        return manifest


def check_section(section: Any) -> None:
    """Refuse a ``pseudo_labels`` section with unknown or missing keys, or files that do not exist."""
    if not isinstance(section, Mapping):
        raise ValueError('the config has no section pseudo_labels = dict(out=..., teacher=..., captions=...)')
    problems = key_problems('pseudo_labels', section, _SECTION, _REQUIRED)
    teacher = section.get('teacher')
    if isinstance(teacher, Mapping):
        problems += key_problems('pseudo_labels.teacher', teacher, _TEACHER, _TEACHER)
    elif teacher is not None:
        problems.append(f'pseudo_labels.teacher is {teacher!r}, expected dict(config=..., checkpoint=...)')
    captions = section.get('captions')
    if captions is not None and not isinstance(captions, Mapping):
        problems.append(f'pseudo_labels.captions is {captions!r}, expected a data set: dict(type=..., ...)')
    for key, limit in _LIMITS.items():
        if section.get(key) is not None and not limit.contain(section[key]):
            problems.append(describe(f'pseudo_labels.{key}', section[key], limit))
    if problems:
        raise ValueError('; '.join(problems))
    require_file(section['teacher']['checkpoint'], "the teacher's checkpoint")


def group_by_image(dataset: Any) -> list[list[int]]:
    """Group consecutive rows of a data set that have the same image."""
    rows = range(len(dataset))
    groups = itertools.groupby(rows, key=lambda row: dataset.get_data_info(row)['img_path'])
    return [list(group) for _, group in groups]


def _count(line: Mapping[str, Any]) -> Counter[str]:
    """Counts of one line of a part."""
    if 'broken' in line:
        return Counter(broken_images=1)
    grounding = line['grounding']
    found = [region for region in grounding['regions'] if 'score' in region]
    total = sum(len(region['bbox']) for region in grounding['regions'])
    pseudo = sum(len(region['bbox']) for region in found)
    return Counter(
        lines=1,
        true_boxes=total - pseudo,
        pseudo_boxes=pseudo,
        pseudo_phrases=len(found),
        left_phrases=len(grounding.get('tokens_ignored') or ()),
    )


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; other objects become strings."""
    return json.loads(json.dumps(value, default=str))
