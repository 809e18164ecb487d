"""Few-shot segmentation benchmarks: PASCAL-5i, COCO-20i and FSS-1000.

Source: HSNet (Min et al., ICCV 2021) for folds, lists and the order of draws; the sets themselves are of
Shaban et al., BMVC 2017; Nguyen and Todorovic, ICCV 2019; Li et al., CVPR 2020.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...options import check_option
from ...registry import DATASETS
from ...text.vocabulary import Vocabulary
from .few_shot import Episode, FewShotDataset, ImagesByClass
from .label_maps import LabelTable
from .label_rules import LabelRules

_GREY_LEVELS = 256


@DATASETS.register_module()
class Pascal5iDataset(FewShotDataset):
    """PASCAL-5i: 20 classes in four folds of five consecutive ones, over VOC 2012 with SBD's maps.

    Test episodes are the (image, class) pairs in order, repeated up to ``num_episodes``. Lists are
    ``<lists>/{trn,val}/fold<fold>.txt`` with lines such as ``2007_000033__01``; training uses those of the
    other folds. With lists, ``ann_file`` is optional.

    Args:
        num_episodes: number of test episodes; ``None``: every pair once.
        kwargs: see :class:`FewShotDataset`.
    """

    def __init__(self, fold: int = 0, *, num_episodes: int | None = 1000, **kwargs: Any) -> None:
        self.num_episodes = num_episodes
        ids = {'raw_classes': 'voc', 'raw_ids': 1, 'background_ids': (0,), 'ignore_ids': (255,)}
        missing = 'error' if kwargs.get('ann_file') else 'drop'  # most images of VOC have no map
        super().__init__(fold, **{'vocabulary': 'fewshot_pascal', 'missing_policy': missing, **ids, **kwargs})

    def fold_classes(self, num_classes: int) -> Sequence[int]:
        size = num_classes // self.num_folds
        return range(self.fold * size, (self.fold + 1) * size)

    def read_lists(self, folder: Path, by_class: ImagesByClass, wanted: Sequence[int]) -> list[Episode]:
        part = 'val' if self.test_mode else 'trn'
        folds = [self.fold] if self.test_mode else [i for i in range(self.num_folds) if i != self.fold]
        pairs = []
        for fold in folds:
            file = folder / part / f'fold{fold}.txt'
            for stem, label in _read_pairs(file):
                if label not in wanted:
                    raise ValueError(f'{file}: image {stem} has class {label + 1} of another fold')
                pairs.append((by_class.index(stem, file), label))
        return pairs

    def test_episodes(self, pairs: list[Episode]) -> list[Episode]:
        count = len(pairs) if self.num_episodes is None else self.num_episodes
        return [pairs[number % len(pairs)] for number in range(count)]


def _read_pairs(file: Path) -> list[tuple[str, int]]:
    """(stem, class) of every line ``<stem>__<class, counted from 1>``."""
    pairs = []
    for number, line in enumerate(_read_lines(file), start=1):
        stem, found, label = line.rpartition('__')
        if not found or not label.isdigit() or int(label) < 1:
            raise ValueError(f'{file}, line {number}: expected <image>__<class number>, got {line!r}')
        pairs.append((stem, int(label) - 1))
    return pairs


def _read_lines(file: Path) -> list[str]:
    """Non-blank lines of a list."""
    return [line.strip() for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]


@DATASETS.register_module()
class COCO20iDataset(FewShotDataset):
    """COCO-20i: 80 classes in four folds, every fourth class to a fold, over COCO 2014.

    Every training item draws a class, then its images; a test draws ``num_episodes`` times a class of the
    fold, then an image of it. Lists are ``<lists>/{trn,val}/fold<fold>.json``, {class number from 0: image
    names}; HSNet's pickles are not read. Without lists, the images of a class are those with an instance of
    it, in the order of the annotation file.

    Args:
        num_episodes: number of test episodes.
        draws: ``'hsnet'``, the published episodes (for the published lists), see ``HSNetEpisodeRng``;
            ``'generator'``: a generator seeded with ``seed``.
        kwargs: see :class:`FewShotDataset`. VOC's spelling of class names is recognised.
    """

    _VOC_NAMES: Mapping[str, str] = {
        'motorcycle': 'motorbike',
        'airplane': 'aeroplane',
        'couch': 'sofa',
        'tv': 'tvmonitor',
    }

    def __init__(
        self,
        fold: int = 0,
        *,
        num_episodes: int = 1000,
        draws: str = 'hsnet',
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_option('draws', draws, ('hsnet', 'generator'))
        self.num_episodes, self.draws, self.seed = num_episodes, draws, seed
        super().__init__(fold, **{'vocabulary': 'fewshot_coco', **kwargs})

    def _resolve(self, vocabulary: Vocabulary, rules: LabelRules, raw_classes: Mapping[int, str]) -> None:
        renamed = {
            old: new
            for old, new in self._VOC_NAMES.items()
            if old in raw_classes.values() and new in vocabulary.names
        }
        super()._resolve(vocabulary, replace(rules, aliases={**renamed, **rules.aliases}), raw_classes)

    def fold_classes(self, num_classes: int) -> Sequence[int]:
        return range(self.fold, num_classes, self.num_folds)

    def read_lists(self, folder: Path, by_class: ImagesByClass, wanted: Sequence[int]) -> list[Episode]:
        file = folder / ('val' if self.test_mode else 'trn') / f'fold{self.fold}.json'
        if not file.is_file():
            pickled = ' (a pickle is never read)' if file.with_suffix('.pkl').is_file() else ''
            raise FileNotFoundError(f'list {file} does not exist{pickled}')
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
            names_of = {int(label): list(names) for label, names in content.items()}
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f'{file}: expected a JSON object of image names by class number') from None
        return [(by_class.index(name, file), label) for label in wanted for name in names_of.get(label, ())]

    def test_episodes(self, pairs: list[Episode]) -> list[Episode]:
        images: dict[int, list[int]] = {}
        for image, label in pairs:
            images.setdefault(label, []).append(image)
        draw = HSNetEpisodeRng() if self.draws == 'hsnet' else np.random.default_rng(self.seed).integers
        labels, episodes = sorted(images), []
        for _ in range(self.num_episodes):
            label = labels[int(draw(len(labels)))]
            episodes.append((images[label][int(draw(len(images[label])))], label))
        return episodes

    def draw_episode(self, idx: int) -> Episode:
        if self.test_mode:
            return super().draw_episode(idx)
        labels = sorted(self.images_of)
        label = labels[np.random.randint(len(labels))]  # noqa: NPY002  (the loader seeds this generator)
        images = self.images_of[label]
        return images[np.random.randint(len(images))], label  # noqa: NPY002


class HSNetEpisodeRng:
    """Reproduces HSNet's sampling (``np.random.seed(0)``) without touching the global RNG."""

    def __init__(self) -> None:
        self._random = np.random.RandomState(0)

    def __call__(self, n: int) -> int:
        """Random integer below ``n``."""
        return int(self._random.choice(n, 1, replace=False)[0])


@DATASETS.register_module()
class FSS1000Dataset(FewShotDataset):
    """FSS-1000: a folder per class with ten images and black and white masks.

    Classes are the sorted folder names of ``<lists>/trn.txt``, ``val.txt`` and ``test.txt``, in this order;
    training uses the first list, testing all images of the last. There are no folds. For masks stored as RGB
    use ``LoadSegmentation(to_grey=True)``.

    Args:
        lists: folder of the three lists of class names.
        data_root: folder of the class folders.
        threshold: minimum grey level of mask pixels.
        kwargs: see :class:`FewShotDataset`.
    """

    num_folds = 1

    def __init__(self, *, lists: str, data_root: str, threshold: int = 128, **kwargs: Any) -> None:
        files = {part: Path(lists) / f'{part}.txt' for part in ('trn', 'val', 'test')}
        self.parts = {part: sorted(_read_lines(file)) for part, file in files.items()}
        self.threshold = threshold
        names = [name for part in self.parts.values() for name in part]
        self.labels_of = {name: label for label, name in enumerate(names)}
        super().__init__(
            lists=lists,
            data_root=data_root,
            data_prefix={'img_path': '', 'seg_map_path': ''},
            **{'vocabulary': names, 'raw_classes': names, **kwargs},
        )

    def fold_classes(self, num_classes: int) -> Sequence[int]:
        return range(num_classes - len(self.parts['test']), num_classes)

    def _list_stems(self, images: Path) -> list[str]:
        stems = []
        for name in self.parts['test' if self.test_mode else 'trn']:
            found = [
                file.name.removesuffix(self.img_suffix)
                for file in (images / name).glob(f'*{self.img_suffix}')
            ]
            if not found:
                raise ValueError(f'{images / name} has no images')
            stems += [f'{name}/{stem}' for stem in sorted(found, key=lambda stem: (len(stem), stem))]
        return stems

    def read_lists(self, folder: Path, by_class: ImagesByClass, wanted: Sequence[int]) -> list[Episode]:
        folders = [Path(record['img_path']).parent.name for record in by_class.records]
        return [(index, self.labels_of[name]) for index, name in enumerate(folders)]

    def test_episodes(self, pairs: list[Episode]) -> list[Episode]:
        return pairs

    def table_of(self, label: int) -> LabelTable:
        return LabelTable({grey: int(grey >= self.threshold) for grey in range(_GREY_LEVELS)})
