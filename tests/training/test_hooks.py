"""Parts of resuming: numbered samples, generators seeded by numbers only, links that are never half-made."""

import itertools
import logging
import os
import pickle
import random
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.fileio import get_file_backend
from mmengine.logging import MessageHub
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ovd.training import hooks
from ovd.training.hooks import CheckpointHook, _link, _NumberedSampler, _SeededFetch, find_latest
from ovd.training.runner import describe_interruption


class Draws(Dataset[tuple[int, float, float, float]]):
    """Each sample: its index and one number from every generator."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        assert type(index) is int
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def loader(
    sampler: Any, workers: int = 0, seed: int = 1, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    dataset = Draws()
    dataset.__getitems__ = _SeededFetch(dataset, seed, rank, world_size)  # type: ignore[attr-defined]
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(_NumberedSampler(sampler), 2, False),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=list,
    )


def take(batches: Any, count: int) -> list[Any]:
    iterator = iter(batches)
    return [sample for _ in range(count) for sample in next(iterator)]


def test_draws_depend_on_seed_and_position_only() -> None:
    def sampler() -> InfiniteSampler:
        return InfiniteSampler(Draws(), seed=0)

    undisturbed = take(loader(sampler()), 6)
    assert len({sample[1:] for sample in undisturbed}) == 12
    assert take(loader(sampler(), workers=2), 6) == undisturbed
    resumed = sampler()
    batches = loader(resumed)
    resumed.skip(8)
    assert take(batches, 2) == undisturbed[8:]
    other = take(loader(sampler(), seed=2), 6)
    assert not {sample[1] for sample in other} & {sample[1] for sample in undisturbed}


def test_samples_are_drawn_alike_on_any_number_of_processes() -> None:
    alone = take(loader(InfiniteSampler(Draws(), seed=0)), 4)
    dealt = []
    for rank in (0, 1):
        sampler = InfiniteSampler(Draws(), seed=0)
        sampler.indices = itertools.islice(sampler._infinite_indices(), rank, None, 2)
        dealt.append(take(loader(sampler, rank=rank, world_size=2), 2))
    assert [sample for pair in zip(*dealt) for sample in pair] == alone


def test_epochs_are_numbered_from_their_start() -> None:
    sampler = DefaultSampler(Draws(), seed=0)
    batches = loader(sampler)
    first = take(batches, 3)
    sampler.set_epoch(1)
    second = take(batches, 3)
    assert {sample[1] for sample in first} & {sample[1] for sample in second} == set()
    fresh = DefaultSampler(Draws(), seed=0)
    fresh.set_epoch(1)
    assert take(loader(fresh), 3) == second


def test_loading_leaves_the_generators_of_the_process_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    fetch = _SeededFetch(Draws(), 0, 0, 1)
    sampler = iter(_NumberedSampler(DefaultSampler(Draws(), shuffle=False)))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    fetch([next(sampler), next(sampler)])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_a_numbered_index_is_an_index_and_survives_the_way_to_a_worker() -> None:
    index = list(_NumberedSampler(DefaultSampler(Draws(), shuffle=False)))[3]
    copy = pickle.loads(pickle.dumps(index))
    assert copy == 3
    assert copy.number == 3
    assert ['a', 'b', 'c', 'd'][copy] == 'd'


def test_other_attributes_are_the_samplers_own() -> None:
    sampler = _NumberedSampler(InfiniteSampler(Draws(), seed=4))
    assert sampler.seed == 4
    assert len(sampler) == 6
    with pytest.raises(AttributeError, match='epoch'):
        sampler.epoch  # noqa: B018


@pytest.mark.parametrize('has_links', [True, False])
def test_the_latest_checkpoint_is_named_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def refuse(self: Path, target: Any) -> None:
            raise OSError('no links here')

        monkeypatch.setattr(Path, 'symlink_to', refuse)
    for step in (1, 2):
        (tmp_path / f'iter_{step}.pth').write_text(str(step))
        _link(tmp_path / 'latest.pth', tmp_path / f'iter_{step}.pth')
        assert (tmp_path / 'latest.pth').read_text() == str(step)
    assert (tmp_path / 'latest.pth').is_symlink() == has_links
    assert sorted(os.listdir(tmp_path)) == ['iter_1.pth', 'iter_2.pth', 'latest.pth']


def test_a_work_directory_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'iter_1.pth').write_text('1')
    _link(tmp_path / 'run' / 'latest.pth', tmp_path / 'run' / 'iter_1.pth')
    shutil.move(tmp_path / 'run', tmp_path / 'moved')
    assert hooks.find_latest(tmp_path / 'moved') == tmp_path / 'moved' / 'latest.pth'


class Saves:
    """What the hook asks of a runner: files by name, with the step that they hold."""

    model = torch.nn.Linear(1, 1)

    def __init__(self, folder: Path) -> None:
        self.work_dir = str(folder)
        self.iter = self.epoch = 0
        self.message_hub = MessageHub('saves')
        self.logger = logging.getLogger('saves')

    def save_checkpoint(self, folder: str, name: str, *_: Any, **__: Any) -> None:
        (Path(folder) / name).write_text(str(self.iter + 1))


def test_a_checkpoint_is_kept_between_those_of_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr('ovd.training.hooks.time.monotonic', lambda: clock[0])
    hook = CheckpointHook(interval=4, by_epoch=False, max_keep_ckpts=1, minutes=2, save_last=False)
    runner = Saves(tmp_path)
    hook.out_dir, hook.file_backend = str(tmp_path), get_file_backend(str(tmp_path))
    hook.file_client_args = hook.backend_args = None
    hook.keep_ckpt_ids = deque(maxlen=1)
    hook.every_n_train_iters = lambda runner, n, start=0: (runner.iter + 1) % n == 0
    kept = []
    for step in range(8):
        runner.iter, clock[0] = step, 60.0 * (step + 1)
        hook.after_train_iter(runner, step)
        latest = find_latest(tmp_path)
        kept.append(None if latest is None else int(latest.read_text()))
    assert kept == [None, 2, 2, 4, 4, 6, 6, 8]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_8.pth', 'latest.pth']
    with pytest.raises(ValueError, match='-1'):
        CheckpointHook(interval=4, minutes=-1)


def test_an_interruption_names_what_was_kept(tmp_path: Path) -> None:
    assert '7 steps' in describe_interruption(tmp_path, 7)
    (tmp_path / 'iter_5.pth').touch()
    (tmp_path / 'latest.pth').symlink_to('iter_5.pth')
    message = describe_interruption(tmp_path, 7)
    assert 'iter_5.pth' in message
    assert '--resume' in message
