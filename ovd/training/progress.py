"""Progress of a run: a bar on a terminal, lines elsewhere; and its curves as a picture.

Reading order: ProgressHook, CurvesHook.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from tqdm import tqdm

from ..files import atomic_path
from ..registry import HOOKS

Note = Callable[[], str]


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows how far a training, a validation or a test is, how fast it goes and how long it will take.

    On a terminal a bar takes the place of the log lines with a remaining time; the log file keeps those.
    Elsewhere the first iteration is a line, and so is one whenever the console was silent for a while.

    Args:
        seconds: of silence, without a terminal.
    """

    priority = 'VERY_LOW'  # after mmengine's lines

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._shown: dict[str, _Progress] = {}

    def before_train(self, runner: Any) -> None:
        self._open('training', runner, runner.max_iters, runner.iter)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        def note() -> str:
            loss = (outputs or {}).get('loss')
            return '' if loss is None else f'loss {float(loss.detach()):.4g}'

        self._step('training', note)

    def after_train(self, runner: Any) -> None:
        self._close('training')

    def before_val_epoch(self, runner: Any) -> None:
        self._open('validation', runner, len(runner.val_dataloader))

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        self._step('validation', str)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._close('validation')

    def before_test_epoch(self, runner: Any) -> None:
        self._open('testing', runner, len(runner.test_dataloader))

    def after_test_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        self._step('testing', str)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._close('testing')

    def _open(self, title: str, runner: Any, total: int, done: int = 0) -> None:
        if is_main_process():
            kind = _Bar if sys.stderr.isatty() else _Lines
            self._shown[title] = kind(title, total, done, runner.logger, self.seconds)

    def _step(self, title: str, note: Note) -> None:
        if title in self._shown:
            self._shown[title].step(note)

    def _close(self, title: str) -> None:
        if title in self._shown:
            self._shown.pop(title).close()


class _Progress:
    """What a bar and lines have in common: see ``ProgressHook._open`` for the arguments."""

    def __init__(self, title: str, total: int, done: int, logger: logging.Logger, seconds: float) -> None:
        self.title, self.total, self.done, self.logger, self.seconds = title, total, done, logger, seconds
        self.console = [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]

    def step(self, note: Note) -> None:
        """Count an iteration; ``note`` is called where something is shown: it may wait for the device."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the console as it was."""


class _Bar(_Progress):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bar = tqdm(
            total=self.total, initial=self.done, desc=self.title, unit='it', mininterval=0.5, leave=False
        )
        # The bar of a validation is inside that of a training, which holds the console already.
        self.held = [
            (handler, handler.stream) for handler in self.console if not isinstance(handler.stream, _AboveBar)
        ]
        for handler, stream in self.held:
            handler.setStream(_AboveBar(stream))
            handler.addFilter(_has_no_remaining_time)

    def step(self, note: Note) -> None:
        if self.bar.update():
            self.bar.set_postfix_str(note(), refresh=False)

    def close(self) -> None:
        self.bar.close()
        for handler, stream in self.held:
            handler.removeFilter(_has_no_remaining_time)
            handler.setStream(stream)


class _AboveBar:
    """A stream whose lines appear above the bars of tqdm."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, file=self.stream, end='')

    def flush(self) -> None:
        self.stream.flush()


def _has_no_remaining_time(record: logging.LogRecord) -> bool:
    return ' eta: ' not in record.getMessage()


class _Lines(_Progress):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.first, self.start = self.done, time.monotonic()
        self.last_line: float | None = None
        for handler in self.console:
            handler.addFilter(self._notice)

    def step(self, note: Note) -> None:
        self.done += 1
        now = time.monotonic()
        if self.last_line is not None and now - self.last_line < self.seconds:
            return
        each = (now - self.start) / (self.done - self.first)
        left = readable_time((self.total - self.done) * each)
        parts = (f'{self.title}: {self.done} of {self.total}', note(), f'{each:.2g} s each', f'{left} left')
        self.logger.info(', '.join(filter(None, parts)))

    def close(self) -> None:
        for handler in self.console:
            handler.removeFilter(self._notice)

    def _notice(self, record: logging.LogRecord) -> bool:
        self.last_line = time.monotonic()
        return True


def readable_time(seconds: float) -> str:
    """'45 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    if minutes < 90:
        return f'{minutes} min'
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours < 48 else f'{hours // 24} d {hours % 24} h'


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws losses, learning rate and metrics by iteration into ``curves.png`` of the work directory.

    It reads what mmengine wrote beside its logs, so that a resumed run shows the whole of it, and draws after
    each validation and at the end.
    """

    priority = 'LOWEST'

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if runner._train_loop is not None and not isinstance(runner._train_loop, dict):
            self.after_train(runner)

    def after_train(self, runner: Any) -> None:
        if is_main_process():
            draw_curves(runner.work_dir)


def draw_curves(work_dir: str | Path) -> Path | None:
    """Draw the curves of a run; their path, or None where nothing was logged."""
    from matplotlib.figure import Figure

    rows = read_scalars(work_dir)
    panels = {title: curves for title, curves in group_curves(rows).items() if curves}
    if not panels:
        return None
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout='constrained')
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (title, curves) in zip(axes, panels.items()):
        for name, (steps, values) in curves.items():
            axis.plot(steps, values, marker='.' if len(steps) < 30 else None, linewidth=1, label=name)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize='x-small', ncols=1 + len(curves) // 8)
        if title == 'loss' and min(min(values) for _, values in curves.values()) > 0:
            axis.set_yscale('log')
    axes[-1].set_xlabel('iteration')
    path = Path(work_dir) / 'curves.png'
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png', dpi=120)
    return path


def read_scalars(work_dir: str | Path) -> list[dict[str, float]]:
    """What all runs in a work directory logged, by step; a later run replaces what it repeats."""
    merged: dict[float, dict[str, float]] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        started: float | None = None
        for row in _lines(path):
            step = row.get('step')
            if step is None:
                continue
            if started is None:  # a resumed run replaces what an earlier one logged beyond its start
                started = step
                merged = {known: values for known, values in merged.items() if known < started}
            merged.setdefault(step, {}).update(row)
    return [{**merged[step], 'step': step} for step in sorted(merged)]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a JSON-lines file, without one that a kill cut off."""
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


Curves = dict[str, tuple[list[float], list[float]]]
_NOT_DRAWN = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'base_lr')


def group_curves(rows: Sequence[dict[str, Any]]) -> dict[str, Curves]:
    """Curves by panel: losses, learning rate, metrics (what a validation gave, see its prefix)."""
    panels: dict[str, Curves] = {'loss': {}, 'learning rate': {}, 'metrics': {}}
    for row in rows:
        for name, value in row.items():
            number = isinstance(value, int | float) and value == value and abs(value) != float('inf')
            if name in _NOT_DRAWN or name.endswith('/time') or not number:
                continue
            if name == 'lr':
                panel = 'learning rate'
            else:
                panel = 'metrics' if '/' in name else 'loss' if 'loss' in name else ''
            if panel:
                steps, values = panels[panel].setdefault(name, ([], []))
                steps.append(row['step'])
                values.append(float(value))
    return panels
