"""Two processes train as one with the same global batch: losses, weights, and nothing left to chance."""

import ovd  # noqa: F401  (a spawned process has no conftest, and the stand-ins come before the hosts)

# isort: split
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmdet.models.task_modules.assigners import AssignResult
from mmengine.structures import InstanceData
from torch import Tensor

from ovd.datasets.detection.region_embeddings import PackDetInputs
from ovd.models.vild.sampler import RepeatableSampler
from ovd.training.hooks import MeanLossHook
from tests.helpers import leave_group
from tests.toys.vild import batch, detector

PICTURES = 4
STEPS = 3


def pictures(step: int, rank: int, world_size: int) -> dict[str, Any]:
    """This rank's share of a global batch; the shares have different numbers of objects and regions."""
    chosen = [
        batch(1, first=PICTURES * step + i, objects=1 + i % 3) for i in range(rank, PICTURES, world_size)
    ]
    if step == 1 and rank == 0:
        chosen[0]['data_samples'][0].region_instances.valid[1:] = False
    return {key: [data[key][0] for data in chosen] for key in ('inputs', 'data_samples')}


def train(mode: str, rank: int, world_size: int) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses of a few steps as the log shows them, and the weights afterwards."""
    torch.set_num_threads(1)
    model: Any = detector(mode)
    torch.manual_seed(100 + rank)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = []
    for step in range(STEPS):
        losses = wrapped(**model.data_preprocessor(pictures(step, rank, world_size), True), mode='loss')
        total, logs = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        MeanLossHook().after_train_iter(None, step, outputs=logs)
        history.append({key: value.item() for key, value in logs.items() if 'loss' in key})
    return history, model.state_dict()


def worker(rank: int, mode: str, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    history, weights = train(mode, rank, 2)
    torch.save({'history': history, 'weights': weights}, f'{folder}/rank{rank}.pth')
    leave_group()


@pytest.mark.parametrize('mode', ['vild', 'vild_ensemble'])
def test_training_loss_equals_that_of_one_process(mode: str, tmp_path: Path) -> None:
    mp.start_processes(worker, (mode, str(tmp_path)), nprocs=2, start_method='spawn')
    history, weights = train(mode, 0, 1)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in range(2)]
    assert ranks[0]['history'] == ranks[1]['history']
    for one, two in zip(history, ranks[0]['history']):
        assert {'loss_cls', 'loss_bbox', 'loss_mask', 'loss_distill', 'loss_rpn_cls'} <= set(one)
        assert two == pytest.approx(one, abs=1e-4)
    for key, value in weights.items():
        torch.testing.assert_close(ranks[0]['weights'][key], value, atol=1e-5, rtol=1e-4)


def sample(sampler: RepeatableSampler, seed: int | None) -> list[int]:
    assigned = AssignResult(2, torch.tensor([1] * 10 + [0] * 30), torch.zeros(40), torch.zeros(40).long())
    priors = InstanceData(priors=torch.arange(160.0).reshape(40, 4))
    metainfo = {} if seed is None else {'draw_seed': seed}
    truth = InstanceData(metainfo=metainfo, bboxes=torch.rand(2, 4), labels=torch.zeros(2).long())
    result = sampler.sample(assigned, priors, truth)
    assert len(result.pos_inds) == 4
    assert len(result.neg_inds) == 4
    return [*result.pos_inds.tolist(), *result.neg_inds.tolist()]


def test_draws_depend_on_the_number_of_the_picture_alone() -> None:
    sampler = RepeatableSampler(num=8, pos_fraction=0.5, add_gt_as_proposals=False)
    torch.manual_seed(0)
    first = sample(sampler, 7)
    torch.manual_seed(1)
    assert sample(sampler, 7) == first
    assert sample(sampler, 8) != first
    draws = [sample(sampler, None) for _ in range(3)]
    assert draws[0] != draws[1] or draws[0] != draws[2]


def test_packing_gives_every_visit_its_number() -> None:
    results = {'img': torch.zeros(4, 4, 3).numpy(), 'img_id': 1}
    seeds = {PackDetInputs()(dict(results))['data_samples'].gt_instances.draw_seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**31 for seed in seeds)
