"""Few-shot segmentation data: binary segmentation of one class per image.

Classes are split into folds; a model is trained on the classes outside a fold and tested on those inside. An
episode is an image and a class: labels are 1 for the class, 0 for others, -1 for ignored pixels; the metainfo
has ``class_id``, the index of the class in the vocabulary. A training episode also has support images of its
class, used as further training images.

Source: the protocol of HSNet (Min et al., ICCV 2021) as LSeg uses it (Li et al., ICLR 2022, Sec. 4.2).
Reading order: ``FewShotDataset``, ``flatten_episodes``, ``SquareResize``; the data sets are in
``few_shot_benchmarks.py``.
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

Episode = tuple[int, int]  # index of the image in the data set, index of the class in the vocabulary


class FewShotDataset(OpenVocabularySegDataset):
    """Episodes over a segmentation data set; subclasses define folds and episodes.

    In test mode an item is one packed query; in training a whole episode with lists of ``inputs`` and
    ``data_samples``, for ``collate_fn=dict(type='ovd.flatten_episodes')``. ``metainfo`` also has ``fold`` and
    ``episode_classes``; the classes of the fold are the unseen ones.

    Folds and lists refer to classes by index, so the vocabulary must have the order of the data set, and with
    lists all of its classes.

    Args:
        fold: index of the held-out classes.
        lists: folder of published lists; by default they are built from the data set.
        border: ignored ids of the data set are ``'ignore'``d or ``'others'``; by default as published:
            ignored in testing, others in training.
        unseen_policy: in training, pixels of the fold's classes are others (``'keep'``, as published) or
            ignored (``'drop'``).
        supports: support images per training episode.
        min_pixels: pixels for a class to count as shown in an image, when lists are built.
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
        unseen_policy: str = 'keep',
        supports: int = 1,
        min_pixels: int = 1,
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        self.border = border or ('ignore' if test_mode else 'others')
        check_option('border', self.border, ('ignore', 'others'))
        check_option('unseen_policy', unseen_policy, ('keep', 'drop'))
        check_option('fold', fold, range(self.num_folds))
        if unknown := {'indices', 'filter_cfg', 'background'} & kwargs.keys():
            raise ValueError(f'{type(self).__name__} does not take {min(unknown)!r}')
        self.fold, self.lists, self.supports, self.min_pixels = fold, lists, supports, min_pixels
        words = Vocabulary.parse(vocabulary)
        held_out = [words.names[label] for label in self.fold_classes(len(words))]
        super().__init__(
            vocabulary=Vocabulary.parse({**words.to_dict(), 'novel': held_out}),
            background='class',
            unseen_policy='keep' if test_mode else unseen_policy,
            test_mode=test_mode,
            **kwargs,
        )

    def fold_classes(self, num_classes: int) -> Sequence[int]:
        """Classes tested in this fold, ascending."""
        raise NotImplementedError

    def read_lists(self, folder: Path, by_class: 'ImagesByClass', wanted: Sequence[int]) -> list[Episode]:
        """Pairs of an image and one of the wanted classes in the published lists."""
        raise NotImplementedError

    def test_episodes(self, pairs: list[Episode]) -> list[Episode]:
        """Test episodes from all pairs of the fold's classes."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict[str, Any]]:
        records = super().load_data_list()
        assert self.vocabulary is not None
        names, fold = self.vocabulary.labels, set(self.fold_classes(len(self.vocabulary)))
        wanted = [label for label in range(len(names)) if (label in fold) == self.test_mode]
        by_class = ImagesByClass(records, self.label_table, self.min_pixels)
        if self.lists is None:
            pairs = [(image, label) for label in wanted for image in by_class.images_of(label)]
        else:
            pairs = self.read_lists(Path(self.lists), by_class, wanted)
        if not pairs:
            raise ValueError(f'{self.source}: no image shows a class of fold {self.fold}')
        self.images_of: dict[int, list[int]] = {}
        for image, label in pairs:
            self.images_of.setdefault(label, []).append(image)
        for label, images in self.images_of.items():
            if len(images) <= self.supports and not self.test_mode:
                raise ValueError(
                    f'{self.source}: {names[label]!r} has {len(images)} images, an episode needs '
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
        if rules.unseen_policy != 'keep':
            rules = replace(rules, unseen_policy='keep')
            kept = rules.resolve(vocabulary, raw_classes, self.source).table.labels
        indices = {raw: kept[raw] for raw in sorted(raw_classes) if 0 <= kept[raw] < len(vocabulary)}
        for before, after in pairwise(indices.values()):
            if before > after:
                first, second = vocabulary.names[before], vocabulary.names[after]
                raise ValueError(
                    f'{self.source}: folds and lists need the class order of the data set, where {first!r} '
                    f'precedes {second!r}'
                )
        absent = [name for raw, name in raw_classes.items() if raw not in indices]
        if absent and self.lists is not None:
            raise ValueError(
                f'{self.source}: lists need all its classes, the vocabulary lacks {shorten(absent)}'
            )

    def table_of(self, label: int) -> LabelTable:
        """Label table of an episode with this class: 1, 0 or ignored."""
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
        """Packed query in test mode, else the packed images of a whole episode."""
        image, label = self.draw_episode(idx)
        if self.test_mode:
            return self.pipeline(self._record(image, label))
        images = [image, *self._draw_supports(image, label)]
        packed = [self.pipeline(self._record(each, label)) for each in images]
        return {key: [each[key] for each in packed] for key in packed[0]}

    def draw_episode(self, idx: int) -> Episode:
        """Query image of an item and its class."""
        image, label = self.episodes[idx].tolist()
        return image, label

    def _draw_supports(self, query: int, label: int) -> list[int]:
        """Other images of the class, without replacement; the data loader seeds the generator."""
        others = [image for image in self.images_of[label] if image != query]
        return [others[i] for i in np.random.choice(len(others), self.supports, replace=False)]  # noqa: NPY002

    def _record(self, image: int, label: int) -> dict[str, Any]:
        return {**self.get_data_info(image), 'class_id': label, 'label_table': self._tables[label]}


class ImagesByClass:
    """Index from classes to the images that show them.

    Args:
        records: of ``OpenVocabularySegDataset``, in order.
        table: labels of raw ids.
        min_pixels: of a class in a label map; instances of any size count.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], table: LabelTable, min_pixels: int) -> None:
        self.records, self.table, self.min_pixels = records, table, min_pixels
        self._images_of: dict[int, list[int]] | None = None
        self._by_stem: dict[str, int] | None = None

    def images_of(self, label: int) -> list[int]:
        """Indices of the images that show a class; the first call reads all label maps."""
        if self._images_of is None:
            self._images_of = {}
            for index, record in enumerate(self.records):
                for found in self._labels_in(record):
                    self._images_of.setdefault(found, []).append(index)
        return self._images_of.get(label, [])

    def _labels_in(self, record: Mapping[str, Any]) -> list[int]:
        if 'segments' in record:
            return sorted({self.table.labels[raw] for raw, _ in record['segments']})
        source = record['seg_map_path']
        labels = self.table.apply(read_label_map(source), source).ravel()
        return np.flatnonzero(np.bincount(labels[labels >= 0]) >= self.min_pixels).tolist()

    def index(self, name: str, source: Path) -> int:
        """Index of an image by name; folder and suffix do not matter."""
        if self._by_stem is None:
            self._by_stem = {Path(record['img_path']).stem: i for i, record in enumerate(self.records)}
        if Path(name).stem not in self._by_stem:
            raise ValueError(f'{source}: image {name!r} is not in the data set')
        return self._by_stem[Path(name).stem]


@FUNCTIONS.register_module()
def flatten_episodes(items: Sequence[Mapping[str, list[Any]]]) -> Any:
    """Collate training episodes to one batch of images; the query of each episode comes first."""
    return pseudo_collate(
        [
            {key: item[key][position] for key in item}
            for item in items
            for position in range(len(item['inputs']))
        ]
    )


@TRANSFORMS.register_module()
class SquareResize(BaseTransform):
    """Resize an image to a square without keeping its aspect ratio, as in the few-shot protocol.

    Images are resized by Pillow (bilinear with antialiasing), labels by torch's nearest rule, floor(i * old /
    new).

    Args:
        size: side of the square in pixels.
        score_at: ``'square'``: evaluate in the square, as published; required in training. ``'original'``
            keeps labels and ``ori_shape``, as do images without labels.
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
                rows, columns = (nearest_indices(side, self.size) for side in results[key].shape)
                results[key] = results[key][rows[:, None], columns]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, score_at={self.score_at!r})'


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Source index of each of ``new`` pixels among ``old``, in single precision like torch."""
    indices = np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int)
    return indices.clip(max=old - 1)
