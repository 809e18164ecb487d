"""What every command shares: one-line errors and exit codes, thread count, values, config arguments."""

import argparse
import ast
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..devices import limit_threads
from .bare_errors import doing, in_context

Main = Callable[[Sequence[str] | None], int | None]

EXPECTED_ERRORS = (ValueError, LookupError, OSError, NotImplementedError, ImportError)


def say(text: str = '', err: bool = False) -> None:
    """Write a line to stdout, or to stderr, at once."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f'{text}\n')
    stream.flush()


USER_ERROR = 2
OUR_ERROR = 1


def run_tool(main: Main, argv: Sequence[str] | None = None, debug: bool = False) -> int:
    """Run ``main(argv)`` and return its exit code.

    Every error is one line on stderr: code 2 for what the user gave, as argparse has it, code 1 for a mistake
    in the program, whose traceback goes to the log file of the run. ``OVD_TRACEBACK=1`` or ``debug``
    raises either. Ctrl-C ends with code 130.
    """
    limit_threads()
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        _close_bars()
        sys.stderr.write('interrupted\n')
        return 130
    except Exception as error:
        _close_bars()
        if debug or os.environ.get('OVD_TRACEBACK'):
            raise
        if _is_expected(error):
            given = sys.argv[1:] if argv is None else argv
            say(f'error: {in_context(error, one_line(error), given)}', err=True)
            return USER_ERROR
        _log_traceback(error)
        say(f'error in ovd: {_where(error)}: {one_line(error)} (OVD_TRACEBACK=1 shows more)', err=True)
        return OUR_ERROR
    finally:
        distributed = sys.modules.get('torch.distributed')
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            # A wrapped model keeps the group's threads alive, and one that meets Python's own end aborts.
            gc.collect()
            distributed.destroy_process_group()


def _close_bars() -> None:
    """End the line of an open progress bar."""
    module = sys.modules.get('tqdm')
    for bar in list(getattr(module.tqdm, '_instances', ())) if module is not None else ():
        bar.close()


def _where(error: Exception) -> str:
    """Type of an error and the line that raised it."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    line = f' in {Path(frames[-1].filename).name}:{frames[-1].lineno}' if frames else ''
    return f'{type(error).__name__}{line}'


def _log_traceback(error: Exception) -> None:
    """Write a traceback into the log file of the run, where one is open."""
    import logging
    import traceback

    module = sys.modules.get('mmengine.logging')
    for handler in module.MMLogger.get_current_instance().handlers if module is not None else ():
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            handler.stream.write(''.join(traceback.format_exception(error)))
            handler.flush()


def _is_expected(error: Exception) -> bool:
    """Bad input, not a mistake in the program; registries report a config's wrong argument as TypeError."""
    if isinstance(error, EXPECTED_ERRORS) or type(error).__name__ == 'OutOfMemoryError':
        return True
    if not isinstance(error, TypeError):
        return False
    return _wrong_argument(error) is not None or _BUILT.match(str(error)) is not None


def _wrong_argument(error: BaseException) -> str | None:
    """See ``wrong_argument``; None where no config was read, without importing what reads them."""
    if 'mmengine' not in sys.modules:
        return None
    from .config_errors import wrong_argument

    return wrong_argument(error)


_BUILT = re.compile(r'(?:class `(\w+)` in \S+: )+')
_IN_WORKER = re.compile(r'Caught .*\n(?:[\w.]+: )', re.DOTALL)


def one_line(error: BaseException) -> str:
    """The message of an error on one line.

    Gone are the quotes that ``KeyError`` adds, the traceback that a loader's worker adds, and the trail of
    classes that registries add, except for the innermost one where an argument is wrong.
    """
    if (argument := _wrong_argument(error)) is not None:
        return argument
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text, from_worker = _IN_WORKER.subn('', text, count=1)
    if from_worker and isinstance(error, KeyError):
        text = text.strip()[1:-1]
    built = _BUILT.match(text)
    if built:
        text = text[built.end() :]
        if isinstance(error, TypeError):
            text = f'in the config of {built[1]}: {text}'
    return ' '.join(text.split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line too."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f'error: {message} (see {self.prog} --help)\n')


class KeyValue(argparse.Action):
    """``--cfg-options a.b=1 c='[1,2]'``: collects ``KEY=VALUE`` pairs into a dict of Python values."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values if isinstance(values, list) else [values]:
            key, equals, text = str(pair).partition('=')
            if not equals or not key:
                parser.error(f'{option_string} expects KEY=VALUE, got {pair!r}')
            options[key] = parse_value(text)
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """A Python value of the command line: a literal (``3``, ``None``, ``[1, 'a']``), true/false, or the text.

    ``[a, b]`` without quotes is a list of words, as in mmengine's own parser; spaces inside words stay.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if text.startswith('[') and text.endswith(']') and not any(c in text[1:-1] for c in '[](){}'):
        return [parse_value(word.strip()) for word in text[1:-1].split(',') if word.strip()]
    return text


LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, ``--work-dir``, ``--cfg-options``, ``--launcher``: for every tool that builds a Runner."""
    parser.add_argument('config', help='path of a config file, or name of a shipped config')
    parser.add_argument('--work-dir', help='where results go; default work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValue,
        default={},
        metavar='KEY=VALUE',
        help='overrides, such as max_iters=100, data_root=/disk/coco/ or train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes are started')


def read_config(args: argparse.Namespace, stage: str) -> Any:
    """Read the config a tool was given, check the files it needs, set work directory and launcher.

    Args:
        args: what :func:`add_config_arguments` parsed.
        stage: what is about to be done: 'train', 'test' or 'demo', see ``check_needs``.
    Returns:
        a mmengine ``Config``.
    Raises:
        ConfigError, FileNotFoundError: see ``load_config`` and ``check_needs``; or the config has no model.
    """
    from ..config import ConfigError, check_needs, load_config

    check_launcher(args.launcher)
    config = load_config(args.config, args.cfg_options)
    if not config.get('model'):
        raise ConfigError(f'config {args.config} has no section model')
    with doing(f'checking what config {args.config} needs'):
        check_needs(config, stage)
    config.work_dir = args.work_dir or config.get('work_dir') or default_work_dir(args.config)
    config.launcher = args.launcher
    check_folder(config.work_dir, 'work directory')
    return config


_LAUNCHED = {  # launcher -> (variable that it sets, how it is started)
    'pytorch': ('RANK', 'torchrun'),
    'slurm': ('SLURM_PROCID', 'srun'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'mpirun'),
}


def launched_rank(launcher: str) -> int:
    """Rank of this process, 0 without a launcher."""
    variable, _ = _LAUNCHED.get(launcher, ('', ''))
    return int(os.environ[variable]) if variable else 0


def check_launcher(launcher: str) -> None:
    """Raise ValueError where a launcher is named that has not started this process."""
    variable, program = _LAUNCHED.get(launcher, (None, None))
    if variable is not None and variable not in os.environ:
        raise ValueError(f'--launcher {launcher}: {variable} is not set, start the command with {program}')


def check_folder(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a folder to write to that is a file, or in which nothing can be written.

    Args:
        path: need not exist.
        what: what the folder is for, for the message.
    Raises:
        NotADirectoryError, PermissionError: one line.
    """
    existing = Path(path).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f'{what} {path}: {existing} is a file, expected a folder')
    if not os.access(existing, os.W_OK | os.X_OK) or existing.is_relative_to('/proc'):
        raise PermissionError(f'{what} {path}: nothing can be written in {existing}')


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from ``low`` to ``high``, both included."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            limit = f'of at least {low}' if high is None else f'from {low} to {high}'
            raise argparse.ArgumentTypeError(f'expected a whole number {limit}, got {text!r}')
        return value

    return convert


def share(text: str) -> float:
    """The type of an option that takes numbers above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'expected a number above 0 and up to 1, got {text!r}')
    return value


COUNT = whole_number(1)
SEED = whole_number(0, 2**32 - 1)


def default_work_dir(config_path: str | os.PathLike[str]) -> str:
    """``work_dirs/<name of the config>``."""
    return os.path.join('work_dirs', Path(config_path).stem)
