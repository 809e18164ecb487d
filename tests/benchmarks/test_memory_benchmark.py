"""The memory benchmark measures a real answer; no size is asserted beyond what must hold on any machine."""

import mmap
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from ovd.cli.console import run_tool
from tests.helpers import ROOT
from tests.toys.groupvit import toy_config
from tests.toys.lseg import model_config


@pytest.fixture
def memory() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    try:
        import memory

        yield memory
    finally:
        sys.path.remove(str(ROOT / 'benchmarks'))


@pytest.fixture
def peaks(memory: ModuleType) -> ModuleType:
    """The benchmark, where the system sets peaks back."""
    fresh_pages(120 << 20).close()
    try:
        memory.reset_peak('cpu')
    except NotImplementedError as error:
        pytest.skip(str(error))
    return memory


def fresh_pages(size: int) -> mmap.mmap:
    """Memory of the system, written to; an allocator may hand out pages that already count as resident."""
    pages = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        pages[start] = 1
    return pages


@pytest.mark.parametrize('name', ['lseg', 'groupvit'])
def test_an_answer_is_measured(peaks: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config: Any = dict(model_config()) if name == 'lseg' else toy_config()
    config.pop('data_preprocessor', None)
    monkeypatch.setitem(peaks.MODELS, name, config)
    found = peaks.answer(name, 1000, 64, 'cpu')
    assert found['idle'] > 0
    assert found['peak'] > found['idle'] - (1 << 20)  # the kernel books pages of a toy a little late
    assert found['seconds'] > 0


def test_peaks_speak_of_what_came_after_the_reset(peaks: ModuleType) -> None:
    before = peaks.peak_memory('cpu')
    with fresh_pages(120 << 20):
        pass
    assert peaks.peak_memory('cpu') - before > 100 << 20


def test_a_peak_that_stays_is_refused(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {'VmHWM': 400 << 20, 'VmRSS': 100 << 20}
    monkeypatch.setattr(memory, 'status', sizes.__getitem__)
    with pytest.raises(NotImplementedError, match=r'VmHWM|/proc'):
        memory.reset_peak('cpu')


def test_figures_show_peaks_and_what_is_above_idle(memory: ModuleType) -> None:
    few = {'words': 150, 'idle': 100 << 20, 'peak': 120 << 20, 'seconds': 1.0}
    many = {'words': 10000, 'idle': 100 << 20, 'peak': 150 << 20, 'seconds': 2.0}
    figure = memory.compare('lseg', 480, few, many)
    assert figure.case == 'lseg, 480 x 480, 10,000 words against 150'
    assert figure.ours == '150 MiB (50 above idle), 2 s'
    assert (figure.value, figure.verdict) == (1.25, 'ok')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['lsegg'], "unknown model 'lsegg'"), (['--words', '0'], 'must be at least 1')],
)
def test_mistakes_are_named(
    memory: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_tool(memory.main, arguments) == 2
    assert message in capsys.readouterr().err
