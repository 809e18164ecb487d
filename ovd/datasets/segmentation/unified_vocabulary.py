"""Joint training on several segmentation data sets with one vocabulary, and a weighted sampler."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dataset import ConcatDataset
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from ...registry import DATA_SAMPLERS, DATASETS
from ...text.vocabulary import Vocabulary
from ..annotations import shorten


@DATASETS.register_module()
class UnifiedSegDataset(ConcatDataset):
    """Concatenation of segmentation data sets with different classes and ids, under one vocabulary.

    Each part matches its class names with the vocabulary, by name, synonym or ``aliases``; others are handled
    by its ``absent_policy``. ``annotated_classes`` of ``metainfo`` are those of any part.

    Args:
        vocabulary: as for :meth:`Vocabulary.parse`.
        parts: configs of data sets such as ``ovd.OpenVocabularySegDataset``, without ``vocabulary``.
        common: default arguments of every part, such as ``pipeline``.
        test_mode: of the parts.
        extra_words_policy: for classes without pixels in any part: ``'error'`` (default in training) or
            ``'keep'``.
    """

    def __init__(
        self,
        vocabulary: Any,
        parts: Sequence[Mapping[str, Any]],
        common: Mapping[str, Any] | None = None,
        test_mode: bool = False,
        extra_words_policy: str | None = None,
    ) -> None:
        self.vocabulary = Vocabulary.parse(vocabulary)
        if own := [index for index, part in enumerate(parts) if 'vocabulary' in part]:
            raise ValueError(f'part {own[0]} has a vocabulary: give it to the unified data set')
        given = {**(common or {}), 'vocabulary': self.vocabulary, 'test_mode': test_mode}
        datasets = [DATASETS.build({**given, 'extra_words_policy': 'keep', **part}) for part in parts]
        known = {name for dataset in datasets for name in dataset.metainfo['annotated_classes']}
        names, is_novel = self.vocabulary.labels, self.vocabulary.is_novel
        absent = [name for name, novel in zip(names, is_novel) if name not in known and not novel]
        if absent and (extra_words_policy or ('keep' if test_mode else 'error')) == 'error':
            raise ValueError(f'no part has pixels for {len(absent)} classes: {shorten(absent)}')
        kinds = [dataset.metainfo['background'] for dataset in datasets]
        super().__init__(datasets, ignore_keys=['background', 'annotated_classes', 'ann_file'])
        self._metainfo |= {
            'background': next((kind for kind in ('class', 'ignore') if kind in kinds), 'none'),
            'annotated_classes': tuple(name for name in names if name in known),
            'ann_file': ', '.join(str(dataset.metainfo['ann_file']) for dataset in datasets),
        }


@DATA_SAMPLERS.register_module()
class WeightedPartsSampler(Sampler[int]):
    """Infinite sampler of a concatenated data set: draw a part by weight, then its next image.

    Images of a part are sampled without replacement, reshuffled every round. Processes share one sequence, of
    which each takes every ``world_size``-th index.

    Args:
        dataset: a ``ConcatDataset``, such as ``UnifiedSegDataset``.
        weights: relative, one per part; equal by default.
        seed: by default random, equal on all processes.
    """

    def __init__(self, dataset: Any, weights: Sequence[float] | None = None, seed: int | None = None) -> None:
        ends = list(dataset.cumulative_sizes)
        self.parts = list(zip([0, *ends[:-1]], ends))
        self.weights = torch.ones(len(ends)) if weights is None else torch.tensor(weights, dtype=torch.float)
        if len(self.weights) != len(ends) or self.weights.min() < 0 or not self.weights.sum() > 0:
            raise ValueError(f'weights must be {len(ends)} numbers >= 0, not all zero, got {weights}')
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self._skipped = 0

    def __iter__(self) -> Iterator[int]:
        start = self.rank + self._skipped * self.world_size
        return itertools.islice(self._sequence(), start, None, self.world_size)

    def _sequence(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self.seed)
        rounds = [self._rounds(part) for part in range(len(self.parts))]
        while True:
            for part in torch.multinomial(self.weights, 1024, replacement=True, generator=random).tolist():
                yield next(rounds[part])

    def _rounds(self, part: int) -> Iterator[int]:
        """Indices of a part, reshuffled every round."""
        random = torch.Generator().manual_seed(self.seed + 1 + part)
        start, end = self.parts[part]
        while True:
            yield from (start + torch.randperm(end - start, generator=random)).tolist()

    def skip(self, num_samples: int) -> None:
        """Start after ``num_samples`` indices of this process, for resuming."""
        self._skipped = num_samples

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the sequence has no epochs."""
