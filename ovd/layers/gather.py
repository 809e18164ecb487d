"""The batch of all processes, with gradients that find their way back to the owner of each row.

With one process, or none in a group, every function here is the identity. Losses follow one rule: the *mean
over processes* of what each returns is the loss of the joint batch, which is what averaging of gradients
(DistributedDataParallel) makes of it.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class JointRows(NamedTuple):
    """Where this process's rows are among those of all: they begin at ``start`` of ``total``."""

    start: int
    total: int


def world_size() -> int:
    """Number of processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum of the processes' tensors of equal shape; the gradients of all of them reach each summand."""
    return x if world_size() == 1 else _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def joint_rows(count: int, device: torch.device) -> JointRows:
    """Place of this process's ``count`` rows in the joint batch; the processes' counts may differ."""
    if world_size() == 1:
        return JointRows(0, count)
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[dist.get_rank()] = count
    before = sum_over_processes(counts).cumsum(0).tolist()
    return JointRows(before[dist.get_rank()] - count, before[-1])


def gather_rows(rows: Tensor, place: JointRows) -> Tensor:
    """Rows [b, ...] of every process, [total, ...], in the order of the processes."""
    if world_size() == 1:
        return rows
    joint = rows.new_zeros(place.total, *rows.shape[1:])
    joint[place.start : place.start + len(rows)] = rows
    return sum_over_processes(joint)


def joint_mean(rows: Tensor) -> Tensor:
    """Scalar whose mean over processes is the mean of all processes' values [b]; 0 when nobody has any."""
    total = joint_rows(len(rows), rows.device).total
    return rows.sum() * (world_size() / max(total, 1))
