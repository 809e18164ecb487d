"""What every command-line tool shares: one-line errors, thread count, a quiet start."""

import argparse
import ast
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..devices import limit_threads

Main = Callable[[Sequence[str] | None], int | None]

EXPECTED_ERRORS = (ValueError, LookupError, OSError, NotImplementedError, ImportError)


def run_tool(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run a tool's ``main(argv)`` and return its exit code.

    Errors a user can cause end in one line on stderr and code 1; ``OVD_TRACEBACK=1`` shows where they arose.
    Ctrl-C ends with code 130. Programming errors keep their traceback.
    """
    limit_threads()
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        sys.stderr.write('interrupted\n')
        return 130
    except Exception as error:
        if os.environ.get('OVD_TRACEBACK') or not _is_expected(error):
            raise
        sys.stderr.write(f'error: {one_line(error)}\n')
        return 1
    finally:
        distributed = sys.modules.get('torch.distributed')
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            # A wrapped model keeps the group's threads alive, and one that meets Python's own end aborts.
            gc.collect()
            distributed.destroy_process_group()


def _is_expected(error: Exception) -> bool:
    """Bad input, not a mistake in the program; registries report a config's wrong argument as TypeError."""
    if isinstance(error, EXPECTED_ERRORS) or type(error).__name__ == 'OutOfMemoryError':
        return True
    return isinstance(error, TypeError) and _BUILT.match(str(error)) is not None


_BUILT = re.compile(r'(?:class `(\w+)` in \S+: )+')
_IN_WORKER = re.compile(r'Caught .*\n(?:[\w.]+: )', re.DOTALL)


def one_line(error: BaseException) -> str:
    """The message of an error on one line.

    Gone are the quotes that ``KeyError`` adds, the traceback that a loader's worker adds, and the trail of
    classes that registries add, except for the innermost one where an argument is wrong.
    """
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

    config = load_config(args.config, args.cfg_options)
    if not config.get('model'):
        raise ConfigError(f'config {args.config} has no section model')
    check_needs(config, stage)
    config.work_dir = args.work_dir or config.get('work_dir') or default_work_dir(args.config)
    config.launcher = args.launcher
    return config


def default_work_dir(config_path: str | os.PathLike[str]) -> str:
    """``work_dirs/<name of the config>``."""
    return os.path.join('work_dirs', Path(config_path).stem)
