"""Differentiable gathering of a batch from all processes.

Without a process group every function is the identity. Losses follow one rule: the *mean over processes* of
the returned values is the loss of the joint batch, since DistributedDataParallel averages gradients.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class JointRows(NamedTuple):
    """Position of this process's rows in the joint batch: from ``start``, of ``total`` rows."""

    start: int
    total: int


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum tensors of equal shape over the processes; gradients are summed too."""
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
    """Position of this process's ``count`` rows in the joint batch; counts may differ between processes."""
    if world_size() == 1:
        return JointRows(0, count)
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[dist.get_rank()] = count
    before = sum_over_processes(counts).cumsum(0).tolist()
    return JointRows(before[dist.get_rank()] - count, before[-1])


def gather_rows(rows: Tensor, joint: JointRows) -> Tensor:
    """Concatenate the rows [b, ...] of all processes, [total, ...], in rank order."""
    if world_size() == 1:
        return rows
    gathered = rows.new_zeros(joint.total, *rows.shape[1:])
    gathered[joint.start : joint.start + len(rows)] = rows
    return sum_over_processes(gathered)


def joint_mean(rows: Tensor) -> Tensor:
    """Scalar whose mean over processes is the mean of all processes' values [b]; 0 without values."""
    total = joint_rows(len(rows), rows.device).total
    return rows.sum() * (world_size() / max(total, 1))
