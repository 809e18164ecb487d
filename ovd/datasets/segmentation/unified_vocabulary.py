"""Several segmentation data sets under one vocabulary, and a sampler that weighs them."""

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
    """Segmentation data sets joined by one vocabulary, each with its own classes and ids.

    Every part matches its class names with the vocabulary, by name or synonym or its ``aliases``; what it has
    no word for is its ``absent``. Pixels of a word that a part does not know carry whatever class the part
    gave them. ``metainfo`` is that of the whole: ``annotated_classes`` are those of any part.

    Args:
        vocabulary: anything :meth:`Vocabulary.parse` takes.
        parts: configs of data sets such as ``ovd.OpenVocabularySegDataset``, without a vocabulary.
        common: arguments of every part, such as ``pipeline``; a part's own go first.
        test_mode: handed to the parts.
        extra_words: ``'refuse'`` (default in training) or ``'allow'`` words that no part has pixels for.
    """

    def __init__(
        self,
        vocabulary: Any,
        parts: Sequence[Mapping[str, Any]],
        common: Mapping[str, Any] | None = None,
        test_mode: bool = False,
        extra_words: str | None = None,
    ) -> None:
        self.vocabulary = Vocabulary.parse(vocabulary)
        if not parts:
            raise ValueError('a unified data set needs at least one part')
        if own := [index for index, part in enumerate(parts) if 'vocabulary' in part]:
            raise ValueError(f'part {own[0]} has a vocabulary; all parts share the one of the whole')
        given = {**(common or {}), 'vocabulary': self.vocabulary, 'test_mode': test_mode}
        datasets = [DATASETS.build({**given, 'extra_words': 'allow', **part}) for part in parts]
        known = {name for dataset in datasets for name in dataset.metainfo['annotated_classes']}
        names, is_novel = self.vocabulary.labels, self.vocabulary.is_novel
        absent = [name for name, novel in zip(names, is_novel) if name not in known and not novel]
        if absent and (extra_words or ('allow' if test_mode else 'refuse')) == 'refuse':
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
    """Draw the part of a joined data set by weight, then its next image; endless, for iteration-based loops.

    Within a part images come in shuffled rounds, so that none is repeated before all were seen. All processes
    share one sequence, of which each takes every ``world_size``-th index.

    Args:
        dataset: with ``cumulative_sizes``, such as ``UnifiedSegDataset`` or mmengine's ``ConcatDataset``.
        weights: one per part, in any unit; equal by default.
        seed: by default drawn, and the same on all processes.
    """

    def __init__(self, dataset: Any, weights: Sequence[float] | None = None, seed: int | None = None) -> None:
        ends = list(dataset.cumulative_sizes)
        self.parts = list(zip([0, *ends[:-1]], ends))
        self.weights = torch.ones(len(ends)) if weights is None else torch.tensor(weights, dtype=torch.float)
        if len(self.weights) != len(ends) or self.weights.min() < 0 or not self.weights.sum() > 0:
            raise ValueError(
                f'weights must be {len(ends)} numbers of zero or more, not all zero, got {weights}'
            )
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
        """The indices of a part, shuffled anew in every round."""
        random = torch.Generator().manual_seed(self.seed + 1 + part)
        start, end = self.parts[part]
        while True:
            yield from (start + torch.randperm(end - start, generator=random)).tolist()

    def skip(self, num_samples: int) -> None:
        """Start after so many indices of this process, as a resumed run does."""
        self._skipped = num_samples

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Without effect: the sequence has no epochs."""
