"""Hooks of a training run: checkpoints that survive a kill, and resuming exactly where they were written."""

import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from mmengine.dist import all_reduce, get_dist_info, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.utils.data import IterableDataset

from ..files import atomic_path
from ..randomness import kept_generators, seed_generators
from ..registry import HOOKS

LATEST = 'latest.pth'


def find_latest(work_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a run: ``latest.pth``, else what ``last_checkpoint`` names, else None."""
    folder = Path(work_dir)
    latest = folder / LATEST
    if latest.exists():
        return latest
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        named = pointer.read_text().strip()
        for candidate in (Path(named), folder / Path(named).name):
            if named and candidate.is_file():
                return candidate
    return None


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's hook, made safe against a kill at any moment.

    The new checkpoint is written (atomically) before an old one is removed, and ``latest.pth`` in the work
    directory always names a complete one. Arguments are mmengine's.
    """

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        if is_main_process():
            for leftover in Path(runner.work_dir).glob('.*.pth.*.tmp'):
                leftover.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            kept = [kept_step for kept_step in self.keep_ckpt_ids if kept_step != step] + [step]
            outdated, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        work_dir = Path(runner.work_dir)
        _point(work_dir / LATEST, Path(self.last_ckpt))
        _write_text(work_dir / 'last_checkpoint', self.last_ckpt)
        for old_step in outdated:
            old = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old_step))
            if self.file_backend.isfile(old):
                self.file_backend.remove(old)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        """Write the new best checkpoint first, remove the previous one afterwards."""
        if not self.save_best:
            return
        previous = self._best_paths()
        self._set_best_paths(dict.fromkeys(previous))
        super()._save_best_checkpoint(runner, metrics)
        current = self._best_paths()
        self._set_best_paths({key: path or previous.get(key) for key, path in current.items()})
        if is_main_process():
            for key, old in previous.items():
                if old and current.get(key) and current[key] != old and self.file_backend.isfile(old):
                    self.file_backend.remove(old)

    def _best_paths(self) -> dict[str, str | None]:
        if hasattr(self, 'best_ckpt_path'):
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = paths.get('')
        else:
            self.best_ckpt_path_dict.update(paths)


def _point(link: Path, target: Path) -> None:
    """Make ``link`` name ``target`` in one step; where links are not possible, make it a copy."""
    with atomic_path(link) as temporary:
        temporary.unlink()
        try:
            temporary.symlink_to(os.path.relpath(target, link.parent))
        except OSError:
            shutil.copyfile(target, temporary)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@HOOKS.register_module()
class RepeatableHook(Hook):
    """Makes a training run a function of its seed alone, however often it is interrupted and resumed.

    The generators are seeded anew for every iteration, by (seed, rank, iteration), and for every sample that
    is loaded, by (seed, its place in the sequence that the samplers of all processes share). So a resumed
    run, or one with another number of loader workers, sees the same augmentations and makes the same draws as
    an undisturbed one; no generator state needs to be stored; and a sample is augmented alike on any number
    of processes.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        loader = runner.train_dataloader
        seed = runner.seed
        # Creating a loader's iterator draws from the global generator unless the loader has its own.
        loader.generator = torch.Generator()
        loader.generator.manual_seed(seed)
        if isinstance(loader.dataset, IterableDataset):
            _place_stream(loader, seed)
            return
        batch_sampler = loader.batch_sampler
        if batch_sampler is None or not hasattr(batch_sampler, 'sampler'):
            return
        if runner._resume and not runner._randomness_cfg.get('diff_rank_seed'):
            _set_sampler_seed(batch_sampler.sampler, seed)
        batch_sampler.sampler = _NumberedSampler(batch_sampler.sampler)
        loader.dataset.__getitems__ = _SeededFetch(loader.dataset, seed, *get_dist_info())

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed_generators(runner.seed, get_rank(), runner.iter, with_cuda=True)


@HOOKS.register_module()
class MeanLossHook(Hook):
    """Makes the logged losses those of the whole batch: the mean over all processes."""

    priority = 'HIGHEST'  # before mmengine's hook notes them

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if not outputs or get_world_size() == 1:
            return
        names = sorted(outputs)
        if _all_agree(names):
            values = torch.stack([outputs[name].detach().float().mean() for name in names])
            all_reduce(values, op='mean')
            outputs.update(zip(names, values))


def _all_agree(names: Sequence[str]) -> bool:
    """Whether every process has the same names; a loss that only some have is left alone."""
    number = crc32(' '.join(names).encode())
    extremes = torch.tensor([number, -number])
    all_reduce(extremes, op='max')
    return bool(extremes[0] == -extremes[1])


@HOOKS.register_module()
class PromptOffsetHook(Hook):
    """Writes the tuned prompt of a GLIP at the end of its training, beside the whole checkpoints.

    Args:
        filename: in the work directory.
    """

    def __init__(self, filename: str = 'prompt.safetensors') -> None:
        self.filename = filename

    def after_train(self, runner: Any) -> None:
        if is_main_process():
            path = Path(runner.work_dir) / self.filename
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            model.save_offset(path)
            runner.logger.info(f'Tuned prompt: {path}')


def _place_stream(loader: Any, seed: int) -> None:
    """Let a stream seed its samples itself, and skip and count epochs where loops look for that: the sampler.

    The sampler of such a loader is a dummy of torch's. What the stream offers is taken: ``seed``, a method
    ``skip(num_samples, batch_size)`` for this process's samples that a resumed run has seen, and
    ``set_epoch(epoch)``.
    """
    stream = loader.dataset
    if hasattr(stream, 'seed'):
        stream.seed = seed
    if hasattr(stream, 'skip'):
        loader.sampler.skip = partial(stream.skip, batch_size=loader.batch_size)
    if hasattr(stream, 'set_epoch'):
        loader.sampler.set_epoch = stream.set_epoch


def _set_sampler_seed(sampler: Any, seed: int) -> None:
    """A resumed run takes its seed from the checkpoint, after the sampler was built with another."""
    if hasattr(sampler, 'seed'):
        sampler.seed = seed


class _NumberedIndex(int):
    """A sample's index that remembers how many samples its sampler gave before it."""

    number: int


class _NumberedSampler:
    """Yields the indices of ``sampler`` as numbered ones; everything else is the sampler's own."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._position = 0
        if hasattr(sampler, 'skip'):
            skip = sampler.skip

            def skip_and_count(num_samples: int) -> None:
                skip(num_samples)
                self._position = num_samples

            sampler.skip = skip_and_count

    def __iter__(self) -> Iterator[int]:
        if hasattr(self._sampler, 'epoch'):
            self._position = self._sampler.epoch * len(self._sampler)
        for index in self._sampler:
            numbered = _NumberedIndex(index)
            numbered.number = self._position
            self._position += 1
            yield numbered

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_sampler'], name)


class _SeededFetch:
    """Loads a batch of samples (torch's ``__getitems__`` protocol), each with generators of its own."""

    def __init__(self, dataset: Any, seed: int, rank: int, world_size: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        with kept_generators():
            return [self._load(index) for index in indices]

    def _load(self, index: int) -> Any:
        if isinstance(index, _NumberedIndex):
            # Samplers deal one common sequence to the processes in turn; this is the place in it.
            place = index.number * self.world_size + self.rank
            seed_generators(self.seed, 0, place)
            index = int(index)
        return self.dataset[index]
