"""The benchmarks' arithmetic and command line; no time is asserted."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from ovd.cli.console import run_tool
from tests.helpers import ROOT


@pytest.fixture
def speed() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    try:
        import speed

        yield speed
    finally:
        sys.path.remove(str(ROOT / 'benchmarks'))


def test_rounds_are_interleaved_in_alternating_order(speed: ModuleType) -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in 'ab'}
    seconds = speed.interleave(calls, rounds=3, warmup=1)
    assert ''.join(order) == 'ba' + 'ab' + 'ba' + 'ab'
    assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}


def test_ratio_is_the_median_over_rounds(speed: ModuleType) -> None:
    assert speed.paired_ratio([2.0, 30.0, 4.4], [1.0, 10.0, 4.0]) == 2.0


@pytest.mark.parametrize(
    ('value', 'at_least', 'verdict'),
    [(1.1, False, 'ok'), (1.2, False, 'missed'), (1.2, True, 'ok'), (1.1, True, 'missed')],
)
def test_bars(speed: ModuleType, value: float, at_least: bool, verdict: str) -> None:
    assert speed.Figure('case', '', '', value, bar=1.15, at_least=at_least).verdict == verdict


def test_table_is_markdown(speed: ModuleType) -> None:
    figures = [speed.Figure('a', '1 s', '2 s', 0.5, bar=1.0), speed.Figure('longer', '3 ms', '', 3.0, 'ms')]
    assert speed.table(figures).splitlines() == [
        '| case   | ours | peer | figure | bar    |    |',
        '|--------|------|------|--------|--------|----|',
        '| a      | 1 s  | 2 s  | 0.5 x  | <= 1 x | ok |',
        '| longer | 3 ms |      | 3 ms   |        |    |',
    ]


@pytest.mark.parametrize(('seconds', 'text'), [(12.34, '12.3 s'), (0.5, '500 ms'), (2e-5, '20 us')])
def test_times_have_a_fitting_unit(speed: ModuleType, seconds: float, text: str) -> None:
    assert speed.written(seconds) == text


def test_unknown_case_is_refused(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(speed.main, ['stepp']) == 2
    assert "unknown case 'stepp', expected some of import, step" in capsys.readouterr().err
