"""Training hooks: checkpoints that are safe against interruption, and exact resuming."""

import os
import shutil
import time
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

from ..checkpoints.loading import find_not_finite
from ..files import atomic_path
from ..randomness import kept_generators, seed_generators
from ..registry import HOOKS

LATEST = 'latest.pth'
BETWEEN = 'between.pth'


def find_latest(work_dir: str | os.PathLike[str]) -> Path | None:
    """Path of the newest checkpoint: ``latest.pth``, or that named in ``last_checkpoint``, or None."""
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
    """mmengine's hook, but safe against interruption at any moment.

    The new checkpoint is written (atomically) before an old one is removed, and ``latest.pth`` in the work
    directory always links to a complete one. Between the checkpoints of ``interval``, a run that counts steps
    keeps ``between.pth``, replaced every few minutes, so that an interrupted run loses little.

    Args:
        minutes: longest time without a checkpoint; None writes those of ``interval`` alone.
        others: mmengine's.
    """

    def __init__(self, *args: Any, minutes: float | None = 5.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if minutes is not None and minutes <= 0:
            raise ValueError(f'minutes of CheckpointHook is {minutes}, expected a positive number or None')
        self.minutes = minutes
        self._saved_at = time.monotonic()

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self._saved_at = time.monotonic()
        if is_main_process():
            for leftover in Path(runner.work_dir).glob('.*.pth.*.tmp'):
                leftover.unlink(missing_ok=True)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.minutes is None or self.by_epoch or not is_main_process():
            return
        if time.monotonic() - self._saved_at >= 60 * self.minutes:
            self._write(runner, BETWEEN, {})
            _link(Path(runner.work_dir) / LATEST, Path(self.out_dir) / BETWEEN)

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
        self._write(runner, name, meta)
        if not is_main_process():
            return
        work_dir = Path(runner.work_dir)
        _link(work_dir / LATEST, Path(self.last_ckpt))
        _write_text(work_dir / 'last_checkpoint', self.last_ckpt)
        for old_step in outdated:
            old = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old_step))
            if self.file_backend.isfile(old):
                self.file_backend.remove(old)
        between = self.file_backend.join_path(self.out_dir, BETWEEN)
        if self.file_backend.isfile(between):
            self.file_backend.remove(between)

    def _write(self, runner: Any, name: str, meta: dict[str, Any]) -> None:
        self._saved_at = time.monotonic()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        bad = find_not_finite(model.state_dict())
        if bad is not None:
            raise TrainingDivergedError(
                f'after {runner.iter + 1} iterations {bad} is not finite; {name} was not written, '
                f'{kept(runner)}'
            )
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


def _link(link: Path, target: Path) -> None:
    """Atomically make ``link`` a symbolic link to ``target``, or a copy if links are not possible."""
    with atomic_path(link) as temporary:
        temporary.unlink()
        try:
            temporary.symlink_to(os.path.relpath(target, link.parent))
        except OSError:
            shutil.copyfile(target, temporary)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


class TrainingDivergedError(ValueError):
    """Losses or weights are not finite: going on would only overwrite good checkpoints."""


def kept(runner: Any) -> str:
    """For a message: the last good checkpoint of a run."""
    latest = find_latest(runner.work_dir)
    if latest is None:
        return 'no checkpoint was written before'
    return f'the last good checkpoint is {latest} ({latest.resolve().name})'


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Ends a training whose loss is not finite, before a checkpoint is overwritten.

    The loss is read every ``interval`` iterations only, since reading it makes a GPU wait; a single bad step,
    as mixed precision has them, is no divergence.

    Args:
        patience: consecutive iterations with a loss that is not finite until the run ends.
        interval: iterations between two looks.
    """

    priority = 'VERY_HIGH'  # before the checkpoint of the same iteration

    def __init__(self, patience: int = 3, interval: int = 10) -> None:
        self.patience, self.interval = patience, interval
        self._bad: torch.Tensor | int = 0
        self._last: dict[str, torch.Tensor] = {}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count iterations with a bad loss on the device; stop when there are too many."""
        losses = {name: value for name, value in (outputs or {}).items() if torch.is_tensor(value)}
        if 'loss' not in losses:
            return
        finite = torch.isfinite(losses['loss'].detach()).all()
        self._bad = torch.where(finite, 0, torch.as_tensor(self._bad, device=finite.device) + 1)
        self._last = losses
        is_due = (runner.iter + 1) % self.interval == 0 or runner.iter + 1 == runner.max_iters
        if is_due and int(self._bad) >= self.patience:
            values = ', '.join(f'{name} {float(value.mean()):.4g}' for name, value in self._last.items())
            raise TrainingDivergedError(
                f'training diverged: the loss of the last {int(self._bad)} iterations up to iteration '
                f'{runner.iter + 1} is not finite ({values}); {kept(runner)}. Lower the learning rate '
                '(optim_wrapper.optimizer.lr) or clip gradients (optim_wrapper.clip_grad)'
            )


@HOOKS.register_module()
class RepeatableHook(Hook):
    """Makes a training run depend on its seed only, no matter how often it is interrupted and resumed.

    The generators are seeded for every iteration with (seed, rank, iteration), and for every loaded sample
    with (seed, its position in the common sequence of the samplers of all processes). A resumed run, or one
    with another number of loader workers, therefore has the same random numbers as an uninterrupted one,
    without stored generator states, and augmentations do not depend on the number of processes.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        loader = runner.train_dataloader
        seed = runner.seed
        # Without a generator of its own, a loader draws from the global one when it is iterated.
        loader.generator = torch.Generator()
        loader.generator.manual_seed(seed)
        if isinstance(loader.dataset, IterableDataset):
            _seed_stream(loader, seed)
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
    """Averages the logged losses over all processes."""

    priority = 'HIGHEST'  # before mmengine's logging hook

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
    """Whether all processes have the same names; otherwise losses are not averaged."""
    number = crc32(' '.join(names).encode())
    extremes = torch.tensor([number, -number])
    all_reduce(extremes, op='max')
    return bool(extremes[0] == -extremes[1])


@HOOKS.register_module()
class PromptOffsetHook(Hook):
    """Saves the tuned prompt of a GLIP after training, in addition to the checkpoints.

    Args:
        filename: name of the file in the work directory.
    """

    def __init__(self, filename: str = 'prompt.safetensors') -> None:
        self.filename = filename

    def after_train(self, runner: Any) -> None:
        if is_main_process():
            path = Path(runner.work_dir) / self.filename
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            model.save_offset(path)
            runner.logger.info(f'Tuned prompt: {path}')


def _seed_stream(loader: Any, seed: int) -> None:
    """Set the seed of an iterable data set, and connect its methods to the loader's (dummy) sampler.

    mmengine's loops call ``skip`` and ``set_epoch`` of the sampler. Optional attributes of the data set:
    ``seed``; ``skip(num_samples, batch_size)``, to skip the samples of this process that a resumed run has
    seen; ``set_epoch(epoch)``.
    """
    stream = loader.dataset
    if hasattr(stream, 'seed'):
        stream.seed = seed
    if hasattr(stream, 'skip'):
        loader.sampler.skip = partial(stream.skip, batch_size=loader.batch_size)
    if hasattr(stream, 'set_epoch'):
        loader.sampler.set_epoch = stream.set_epoch


def _set_sampler_seed(sampler: Any, seed: int) -> None:
    """Set the seed of a sampler: a resumed run reads its seed from the checkpoint after building it."""
    if hasattr(sampler, 'seed'):
        sampler.seed = seed


class _NumberedIndex(int):
    """Index of a sample, with its position in the sequence of the sampler."""

    number: int


class _NumberedSampler:
    """Wraps a sampler to yield numbered indices."""

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
    """Loads a batch of samples (torch's ``__getitems__`` protocol), seeding the generators for each."""

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
            # Samplers distribute one common sequence over the processes in turn.
            position = index.number * self.world_size + self.rank
            seed_generators(self.seed, 0, position)
            index = int(index)
        return self.dataset[index]
