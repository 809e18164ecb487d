"""Timing by comparison: peers take turns in one process, so that load from elsewhere hits them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

Call = Callable[[], object]

# What a second is: of the wall, or of this process on all its cores, which other processes cannot steal.
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        case: what is measured.
        ours, peer: medians, written out.
        value: the figure that the bar speaks of, in ``unit``.
        bar: the limit, None where there is none.
        at_least: the bar is a lower limit.
    """

    case: str
    ours: str
    peer: str
    value: float
    unit: str = 'x'
    bar: float | None = None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ''
        good = self.value >= self.bar if self.at_least else self.value <= self.bar
        return 'ok' if good else 'missed'

    def cells(self) -> list[str]:
        bar = '' if self.bar is None else f'{">=" if self.at_least else "<="} {self.bar:g} {self.unit}'
        return [self.case, self.ours, self.peer, f'{self.value:.3g} {self.unit}', bar, self.verdict]


def interleave(
    calls: Mapping[str, Call], rounds: int, clock: str = 'wall', warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call in each round; every other round runs them in reverse order."""
    names, now = list(calls), CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            _wait_for_device()
            start = now()
            calls[name]()
            _wait_for_device()
            if turn >= 0:
                seconds[name].append(now() - start)
    return seconds


def paired_ratio(ours: list[float], peer: list[float]) -> float:
    """Median over the rounds of ours / peer."""
    return median(a / b for a, b in zip(ours, peer))


def compare(case: str, ours: Call, peer: Call, rounds: int, clock: str, bar: float) -> Figure:
    """Time ratio of two calls: smaller is better."""
    seconds = interleave({'ours': ours, 'peer': peer}, rounds, clock)
    return Figure(
        case,
        written(median(seconds['ours'])),
        written(median(seconds['peer'])),
        paired_ratio(seconds['ours'], seconds['peer']),
        bar=bar,
    )


def written(seconds: float) -> str:
    """A time with a fitting unit."""
    if seconds >= 1:
        return f'{seconds:.3g} s'
    return f'{1e3 * seconds:.3g} ms' if seconds >= 1e-3 else f'{1e6 * seconds:.3g} us'


def table(figures: list[Figure]) -> str:
    """A Markdown table."""
    rows = [['case', 'ours', 'peer', 'figure', 'bar', ''], *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
    lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(lines)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
