"""Stream image-caption pairs from tar shards in webdataset's layout."""

import itertools
import os
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import get_dist_info
from mmengine.logging import MMLogger
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle

from ...options import check_option
from ...randomness import kept_generators, seed_generators
from ...registry import DATASETS
from .shard_reader import Part, RawPair, ShardReader, expand_shards, is_remote

_MAX_EMPTY_PASSES = 100  # consecutive passes without a sample, after which a loader raises
_ENDLESS = 1 << 62


@DATASETS.register_module()
class CaptionShards(IterableDataset):
    """Streams the pairs of tar shards, each once per pass, for an endless number of passes.

    The members of a sample share their name: an image (jpg, jpeg, png, webp) and a caption (txt, text, or a
    field of json). The pipeline gets ``img`` (uint8 [H, W, 3], BGR), ``img_path`` ('shard.tar#name'),
    ``caption``, ``img_shape`` and ``ori_shape``; no ``LoadImage`` is needed.

    In each pass, the shards are shuffled and distributed over all loaders (worker processes of all ranks);
    if there are more loaders than shards, they share the samples of a shard. Within a pass every sample is
    therefore loaded once. The augmentation of a sample depends only on the seed, the pass and its name; the
    order of the stream depends on the number of loaders, too.

    Use ``sampler=None`` in the data loader, with ``IterBasedTrainLoop``, or with ``epoch_length`` and
    ``EpochBasedTrainLoop``. ``ovd.RepeatableHook``, which every run of ``tools/train.py`` has, sets the seed,
    the epoch, and the number of samples that a resumed run skips.

    Args:
        shards: one or several patterns of tar files: webdataset's braces ('data/cc3m/{00000..00331}.tar'), or
            '*' for files on disk. A URL or pipe that webdataset supports is opened only if named here.
        pipeline: transforms, from augmentation to packing.
        broken: 'skip' unusable data (a shard or member that is missing, damaged or truncated, an image that
            cannot be decoded, a blank caption, a sample without image or caption) and log how much, or
            'refuse' it: the run ends with an error that names shard and member.
        shuffle_buffer: number of encoded samples in the shuffle buffer of each loader; 0 keeps the order of
            samples and shards.
        caption_field: key of the caption in json members, for samples without a text member.
        max_member_bytes: members of more bytes are unusable data; bounds the memory of one sample.
        epoch_length: samples per epoch of all processes, ideally a multiple of processes x workers x batch
            size; None: endless.
        exact_resume: a resumed run reads the samples seen before, without decoding them, and continues like
            an uninterrupted run; a broken image counts as seen, so that one sample is repeated for each.
            False starts at once, in another order.
        seed: of the order; set by ``ovd.RepeatableHook`` to that of the run.
    Raises:
        FileNotFoundError: shards on disk that do not exist: any with 'refuse', else all of them.
        ValueError: no shards; unusable data with 'refuse'; no usable sample in a thousand attempts.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        pipeline: Sequence[Any] = (),
        broken: str = 'skip',
        shuffle_buffer: int = 1000,
        caption_field: str = 'caption',
        max_member_bytes: int = 1 << 28,
        epoch_length: int | None = None,
        exact_resume: bool = True,
        seed: int = 0,
    ) -> None:
        check_option('broken', broken, ('skip', 'refuse'))
        self.rank, self.world_size = get_dist_info()
        self.reader = ShardReader(broken, caption_field, max_member_bytes)
        self.shards = self._present(expand_shards(shards))
        self.pipeline = Compose(pipeline)
        self.shuffle_buffer = shuffle_buffer
        self.epoch_length = epoch_length
        self.exact_resume = exact_resume
        self.seed = seed
        self.metainfo = {'ann_file': shards if isinstance(shards, str) else list(shards)}
        self._epoch = 0
        self._iterations = 0  # since set_epoch
        self._seen = 0  # samples of this process that the next iterator skips
        self._batch_size = 1  # of these

    def __len__(self) -> int:
        """Samples per epoch of this process; a huge number if the stream is endless."""
        if self.epoch_length is None:
            return _ENDLESS  # loops and loggers require a length
        return _share(self.epoch_length, self.rank, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iterator; further iterators increase it by one each."""
        self._epoch, self._iterations, self._seen = epoch, 0, 0

    def skip(self, num_samples: int, batch_size: int) -> None:
        """Let the next iterator skip the first ``num_samples`` of this process, which came in batches."""
        if self.epoch_length is not None:
            epochs, num_samples = divmod(num_samples, len(self))
            self._epoch += epochs
        self._seen, self._batch_size = num_samples, batch_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        seen = self._seen if self._iterations == 0 else 0
        # The data loader takes batches from its workers in turn, starting with the first.
        batches = seen // self._batch_size
        number = (number + batches) % workers
        skipped = self._batch_size * _share(batches, number, workers)
        key = (self._epoch + self._iterations, 0 if self.exact_resume else seen)
        self._iterations += 1
        samples = self._samples(
            key, self.rank * workers + number, self.world_size * workers, skipped if self.exact_resume else 0
        )
        if self.epoch_length is None:
            return samples
        return itertools.islice(samples, _share(len(self), number, workers) - skipped)

    def _samples(self, key: tuple[int, int], loader: int, loaders: int, skipped: int) -> Iterator[Any]:
        """Pipeline outputs of one loader, without the first ``skipped``."""
        empty_passes = 0
        for number in itertools.count():
            is_empty = True
            for pair in self._pass(key, number, loader, loaders):
                if skipped:
                    skipped -= 1
                    is_empty = False
                    continue
                image = self.reader.decode(pair)
                sample = None if image is None else self._prepared(pair, image, (*key, number))
                if sample is not None:
                    is_empty = False
                    yield sample
            empty_passes = empty_passes + 1 if is_empty else 0
            if empty_passes == _MAX_EMPTY_PASSES:
                raise ValueError(f'{self.metainfo["ann_file"]}: no usable sample ({self.reader.skipped})')

    def _pass(self, key: tuple[int, int], number: int, loader: int, loaders: int) -> Iterator[RawPair]:
        """Pairs of one loader in pass ``number``, shuffled."""
        # At least one part for each loader.
        step = -(-loaders // len(self.shards))
        parts = [Part(shard, first, step) for shard in self.shards for first in range(step)]
        if self.shuffle_buffer:
            random.Random(f'{self.seed} {key} {number}').shuffle(parts)
        # Passes are distributed as one sequence, so that on average all loaders get equally many parts.
        assigned = parts[(loader - number * len(parts)) % loaders :: loaders]
        pairs: Iterator[RawPair] = itertools.chain.from_iterable(map(self.reader.read, assigned))
        if not self.shuffle_buffer:
            return pairs
        rng = random.Random(f'{self.seed} {key} {number} {loader}')
        shuffled = shuffle(self.shuffle_buffer, initial=self.shuffle_buffer // 10, rng=rng)
        return iter(shuffled(pairs))

    def _prepared(self, pair: RawPair, image: np.ndarray, key: tuple[int, ...]) -> Any:
        """Pipeline output of a pair; None if the pipeline rejects it."""
        results = {
            'img': np.ascontiguousarray(image[..., ::-1]),
            'img_path': pair.name,
            'caption': pair.caption,
            'captions': [pair.caption],
            'img_shape': image.shape[:2],
            'ori_shape': image.shape[:2],
        }
        with kept_generators():
            shard, _, name = pair.name.rpartition('#')
            seed_generators(self.seed, *key, zlib.crc32(f'{os.path.basename(shard)}#{name}'.encode()))
            return self.pipeline(results)

    def _present(self, shards: list[str]) -> list[str]:
        """Drop local shards that do not exist, with a warning, or refuse them."""
        missing = [shard for shard in shards if not is_remote(shard) and not os.path.isfile(shard)]
        if not missing:
            return shards
        message = f'shard {missing[0]} does not exist; {len(missing)} of {len(shards)} are missing'
        if self.reader.broken == 'refuse' or len(missing) == len(shards):
            raise FileNotFoundError(message)
        MMLogger.get_current_instance().warning(message)
        return [shard for shard in shards if shard not in set(missing)]


def _share(total: int, index: int, count: int) -> int:
    """Number of items that loader ``index`` gets if ``total`` items go to ``count`` loaders in turn."""
    return (total - index + count - 1) // count
