"""Where a process computes: its device, its rank among others, its threads."""

import os
import sys

MAX_THREADS = 8


def limit_threads() -> None:
    """Use at most eight threads per operation on CPU unless ``OMP_NUM_THREADS`` says otherwise.

    Small models gain nothing from more, and threads that spin on a busy machine cost more than they bring.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if 'OMP_NUM_THREADS' in os.environ or cores <= MAX_THREADS:
        return
    torch = sys.modules.get('torch')
    if torch is not None:
        torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    else:
        os.environ['OMP_NUM_THREADS'] = str(MAX_THREADS)


def process_rank(launcher: str | None) -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) of this process, from the launcher's environment."""
    if launcher == 'slurm':
        names = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')
    elif launcher == 'pytorch' or (launcher is None and 'RANK' in os.environ):
        names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    else:
        return 0, 1, 0
    missing = [name for name in names if name not in os.environ]
    if missing:
        name = launcher or 'pytorch'
        raise ValueError(f'--launcher {name}: {missing[0]} is not set, start with srun or torchrun')
    rank, world_size, local_rank = (int(os.environ[name]) for name in names)
    return rank, world_size, local_rank


def find_device(name: str | None, local_rank: int = 0) -> str:
    """The device asked for; by default the GPU of this process, or the CPU where there is none.

    Raises:
        ValueError: no such device here.
    """
    import torch

    gpus = torch.cuda.device_count()
    if name is None:
        return f'cuda:{local_rank % gpus}' if gpus else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: expected 'cpu', 'cuda' or 'cuda:0'") from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"device {name!r} is not supported: expected 'cpu', 'cuda' or 'cuda:0'")
    if device.type == 'cuda' and (device.index or 0) >= gpus:
        raise ValueError(f'device {name!r} is not here: torch sees {gpus} GPUs')
    return name
