"""One training at a time in a work directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = '.training.lock'


@contextmanager
def only_training_in(work_dir: str | os.PathLike[str], rank: int = 0) -> Iterator[None]:
    """Hold a work directory for the training in the block; the operating system lets go of it at a kill.

    Args:
        work_dir: made if it does not exist.
        rank: of this process; the first of a training holds the directory for all.
    Raises:
        ValueError: another process trains in it.
    """
    if rank:
        yield
        return
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f'another training is writing to the work directory {folder}: wait for its end, or give another '
            '--work-dir'
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # nothing hidden is left in a finished run's folder
        lock.release()
