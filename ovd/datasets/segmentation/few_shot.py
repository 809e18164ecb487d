"""Few-shot segmentation data: one class of an image at a time, the others are 'others'.

A data set's classes are cut into folds; a model is trained on the classes outside a fold and tested on those
inside. An episode is an image and a class: labels are 1 on the class, 0 elsewhere, -1 where nothing counts,
and ``class_id``, the class's place in the vocabulary, is in the sample's metainfo. In training an episode
also brings support images of its class, which are training images like the query.

Source: the protocol of HSNet (Min et al., ICCV 2021) as LSeg uses it (Li et al., ICLR 2022, Sec. 4.2).
Reading order: ``FewShotDataset``, ``flatten_episodes``, ``SquareResize``; the data sets are in
``few_shot_sets.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from PIL import Image

from ...options import check_option
from ...registry import FUNCTIONS, TRANSFORMS
from ...text.vocabulary import Vocabulary
from ..annotations import shorten
from .dataset import OpenVocabularySegDataset
from .label_maps import IGNORE_INDEX, LabelTable, read_label_map
from .label_rules import LabelRules

Episode = tuple[int, int]  # the image's place in the data set, the class's in the vocabulary


class FewShotDataset(OpenVocabularySegDataset):
    """Episodes over a segmentation data set; subclasses say which classes and which episodes.

    In test mode an item is one packed query. In training it is a whole episode, whose ``inputs`` and
    ``data_samples`` are lists of the query and its supports: the loader needs
    ``collate_fn=dict(type='ovd.flatten_episodes')``. ``metainfo`` has in addition ``fold`` and
    ``episode_classes``, the classes asked for here; the fold's classes are the unseen ones.

    Folds and lists go by the places of the classes, so the vocabulary must hold them in the order of the data
    set, and with lists all of them.

    Args:
        fold: which classes are left out of training and tested.
        lists: folder of published lists; without it they are built from the files of the data set.
        border: whether pixels that the data set leaves open are ``'ignore'``d or count as ``'others'``; by
            default as published: ignored in testing, others in training.
        unseen: what pixels of the fold's classes are in training: others (``'keep'``, as published), or
            ``'ignore'``d.
        supports: in training, images beside the query.
        min_pixels: an image shows a class if its map has so many pixels of it (1 or more), when lists are
            built.
        kwargs: see :class:`OpenVocabularySegDataset`.
    """

    num_folds = 4

    def __init__(
        self,
        fold: int = 0,
        *,
        vocabulary: Any,
        lists: str | None = None,
        border: str | None = None,
        unseen: str = 'keep',
        supports: int = 1,
        min_pixels: int = 1,
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        self.border = border or ('ignore' if test_mode else 'others')
        check_option('border', self.border, ('ignore', 'others'))
        check_option('unseen', unseen, ('keep', 'ignore'))
        if not 0 <= fold < self.num_folds:
            raise ValueError(f'fold must be 0 to {self.num_folds - 1}, got {fold}')
        if supports < 0 or min_pixels < 1:
            raise ValueError(
                f'supports must be 0 or more and min_pixels 1 or more, got {supports} and {min_pixels}'
            )
        if unknown := {'indices', 'filter_cfg', 'background'} & kwargs.keys():
            raise ValueError(f'{type(self).__name__} does not take {min(unknown)!r}')
        self.fold, self.lists, self.supports, self.min_pixels = fold, lists, supports, min_pixels
        words = Vocabulary.parse(vocabulary)
        if len(words) < self.num_folds:
            raise ValueError(f'{len(words)} classes cannot be cut into {self.num_folds} folds')
        held_out = [words.names[label] for label in self.fold_classes(len(words))]
        super().__init__(
            vocabulary=Vocabulary.parse({**words.to_dict(), 'novel': held_out}),
            background='class',
            unseen='keep' if test_mode else unseen,
            test_mode=test_mode,
            **kwargs,
        )

    def fold_classes(self, num_classes: int) -> Sequence[int]:
        """The classes tested in this fold, rising."""
        raise NotImplementedError

    def read_lists(self, folder: Path, shown: 'Shown', wanted: Sequence[int]) -> list[Episode]:
        """Every pair of an image and one of the wanted classes, from the published lists."""
        raise NotImplementedError

    def test_episodes(self, pairs: list[Episode]) -> list[Episode]:
        """The episodes of a test, from all pairs of the fold's classes."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict[str, Any]]:
        records = super().load_data_list()
        assert self.vocabulary is not None
        names, fold = self.vocabulary.labels, set(self.fold_classes(len(self.vocabulary)))
        wanted = [label for label in range(len(names)) if (label in fold) == self.test_mode]
        shown = Shown(records, self.label_table, self.min_pixels)
        if self.lists is None:
            pairs = [(image, label) for label in wanted for image in shown.images_of(label)]
        else:
            pairs = self.read_lists(Path(self.lists), shown, wanted)
        if not pairs:
            raise ValueError(f'{self.source}: no image shows a class asked for by fold {self.fold}')
        self.images_of: dict[int, list[int]] = {}
        for image, label in pairs:
            self.images_of.setdefault(label, []).append(image)
        for label, images in self.images_of.items():
            if len(images) <= self.supports and not self.test_mode:
                raise ValueError(
                    f'{self.source}: {len(images)} images show {names[label]!r}, an episode needs '
                    f'{1 + self.supports}'
                )
        self.episodes = np.array(self.test_episodes(pairs) if self.test_mode else pairs, np.int32)
        self._tables = {label: self.table_of(label) for label in self.images_of}
        self._metainfo |= {'fold': self.fold, 'episode_classes': tuple(names[label] for label in wanted)}
        MMLogger.get_current_instance().info(
            f'{self.source}: {len(self.episodes)} episodes of {len(self.images_of)} classes, fold {self.fold}'
        )
        return records

    def _resolve(self, vocabulary: Vocabulary, rules: LabelRules, raw_classes: Mapping[int, str]) -> None:
        super()._resolve(vocabulary, rules, raw_classes)
        kept = self.label_table.labels
        if rules.unseen != 'keep':
            kept = replace(rules, unseen='keep').resolve(vocabulary, raw_classes, self.source).table.labels
        places = {raw: kept[raw] for raw in sorted(raw_classes) if 0 <= kept[raw] < len(vocabulary)}
        for before, after in pairwise(places.values()):
            if before > after:
                first, second = vocabulary.names[before], vocabulary.names[after]
                raise ValueError(
                    f'{self.source}: {first!r} comes before {second!r} in the data set, in the vocabulary '
                    f'it is the other way round; folds and lists go by the order of the data set'
                )
        absent = [name for raw, name in raw_classes.items() if raw not in places]
        if absent and self.lists is not None:
            raise ValueError(
                f'{self.source}: lists number the classes of the data set, of which the vocabulary lacks '
                f'{shorten(absent)}'
            )

    def table_of(self, label: int) -> LabelTable:
        """What raw ids are when this class is asked for: 1, or 0, or ignored."""
        border = 0 if self.border == 'others' else IGNORE_INDEX
        return LabelTable(
            {
                raw: border if raw in self.rules.ignore_ids else 1 if found == label else min(found, 0)
                for raw, found in self.label_table.labels.items()
            }
        )

    def __len__(self) -> int:
        if not self._fully_initialized:
            self.full_init()
        return len(self.episodes)

    def prepare_data(self, idx: int) -> Any:
        """The packed query in test mode, else the packed images of a whole episode."""
        image, label = self.draw_episode(idx)
        if self.test_mode:
            return self.pipeline(self._record(image, label))
        images = [image, *self._draw_supports(image, label)]
        packed = [self.pipeline(self._record(each, label)) for each in images]
        return {key: [each[key] for each in packed] for key in packed[0]}

    def draw_episode(self, idx: int) -> Episode:
        """The query of an item and its class."""
        image, label = self.episodes[idx].tolist()
        return image, label

    def _draw_supports(self, query: int, label: int) -> list[int]:
        """Other images of the class, without replacement; the loader seeds the generator."""
        others = [image for image in self.images_of[label] if image != query]
        return [others[i] for i in np.random.choice(len(others), self.supports, replace=False)]  # noqa: NPY002

    def _record(self, image: int, label: int) -> dict[str, Any]:
        return {**self.get_data_info(image), 'class_id': label, 'label_table': self._tables[label]}


class Shown:
    """Which images show which class.

    Args:
        records: of ``OpenVocabularySegDataset``; their order is kept.
        table: labels of raw ids.
        min_pixels: of a label map; an instance counts whatever its size.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], table: LabelTable, min_pixels: int) -> None:
        self.records, self.table, self.min_pixels = records, table, min_pixels
        self._images_of: dict[int, list[int]] | None = None
        self._places: dict[str, int] | None = None

    def images_of(self, label: int) -> list[int]:
        """Places of the images that show a class; the first call looks at all of them."""
        if self._images_of is None:
            self._images_of = {}
            for place, record in enumerate(self.records):
                for found in self._labels_in(record):
                    self._images_of.setdefault(found, []).append(place)
        return self._images_of.get(label, [])

    def _labels_in(self, record: Mapping[str, Any]) -> list[int]:
        if 'segments' in record:
            return sorted({self.table.labels[raw] for raw, _ in record['segments']})
        source = record['seg_map_path']
        labels = self.table.apply(read_label_map(source), source).ravel()
        return np.flatnonzero(np.bincount(labels[labels >= 0]) >= self.min_pixels).tolist()

    def place(self, name: str, source: Path) -> int:
        """The place of an image by its name; folder and suffix do not matter."""
        if self._places is None:
            self._places = {Path(record['img_path']).stem: i for i, record in enumerate(self.records)}
        if Path(name).stem not in self._places:
            raise ValueError(f'{source}: image {name!r} is not in the data set')
        return self._places[Path(name).stem]


@FUNCTIONS.register_module()
def flatten_episodes(items: Sequence[Mapping[str, list[Any]]]) -> Any:
    """Collate training episodes: their images become one batch of independent ones, queries first in each."""
    return pseudo_collate(
        [
            {key: item[key][position] for key in item}
            for item in items
            for position in range(len(item['inputs']))
        ]
    )


@TRANSFORMS.register_module()
class SquareResize(BaseTransform):
    """Squeeze an image to a square, whatever its shape, as the few-shot protocol does.

    The image is resized by Pillow (bilinear, smoothed when shrinking), labels take the nearest pixel by
    torch's rule, floor(i * old / new).

    Args:
        size: side of the square in pixels.
        score_at: ``'square'``: predictions and labels are compared in the square, as published;
            ``'original'`` leaves labels and ``ori_shape`` as they are. Training needs ``'square'``. An image
            without labels, of which nothing is scored, keeps its ``ori_shape``.
    """

    def __init__(self, size: int = 480, score_at: str = 'square') -> None:
        check_option('score_at', score_at, ('square', 'original'))
        self.size = size
        self.score_at = score_at

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        square = (self.size, self.size)
        height, width = results['img'].shape[:2]
        results['img'] = np.array(Image.fromarray(results['img']).resize(square, Image.Resampling.BILINEAR))
        results['img_shape'] = square
        results['scale_factor'] = (self.size / width, self.size / height)
        if self.score_at == 'square' and results.get('seg_fields'):
            results['ori_shape'] = square
            for key in results['seg_fields']:
                rows, columns = (nearest_places(side, self.size) for side in results[key].shape)
                results[key] = results[key][rows[:, None], columns]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, score_at={self.score_at!r})'


def nearest_places(old: int, new: int) -> np.ndarray:
    """Where each of ``new`` pixels comes from among ``old`` ones, computed in single precision like torch."""
    places = np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int)
    return places.clip(max=old - 1)
