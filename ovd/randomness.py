"""Generators seeded by numbers, so that a draw depends on what it is for and not on what was drawn before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*key: int, with_cuda: bool = False) -> None:
    """Seed the global generators of Python, numpy and torch by a tuple of numbers >= 0.

    Args:
        with_cuda: those of all GPUs, too.
    """
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[2]))
    if with_cuda and torch.cuda.is_available():
        torch.cuda.manual_seed_all(int(words[2]))


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the global generators of Python, numpy and torch (on the CPU) after the block as before it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
