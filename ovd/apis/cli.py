"""What every command-line tool shares: one-line errors, thread count, a quiet start."""

import argparse
import ast
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Main = Callable[[Sequence[str] | None], int | None]

EXPECTED_ERRORS = (ValueError, LookupError, OSError, NotImplementedError, ImportError)


def run_tool(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run a tool's ``main(argv)`` and return its exit code.

    Errors a user can cause end in one line on stderr and code 1; ``OVD_TRACEBACK=1`` shows where they arose.
    Ctrl-C ends with code 130. Programming errors keep their traceback.
    """
    set_threads()
    try:
        return main(argv) or 0
    except KeyboardInterrupt:
        sys.stderr.write('interrupted\n')
        return 130
    except EXPECTED_ERRORS as error:
        if os.environ.get('OVD_TRACEBACK'):
            raise
        sys.stderr.write(f'error: {one_line(error)}\n')
        return 1


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without the quotes that ``KeyError`` puts around it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return ' '.join(text.split()) or type(error).__name__


def set_threads() -> None:
    """Use at most two intra-op threads on CPU unless ``OMP_NUM_THREADS`` says otherwise.

    The small models of the quickstart barely gain from more, and spinning threads on a busy machine cost far
    more than they bring.
    """
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))


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
    """A Python value from the command line: a literal (``3``, ``[1, 'a']``), true/false/none, else the text.

    ``[a, b]`` without quotes is a list of words, as in mmengine's own parser; spaces inside words stay.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    lowered = text.lower()
    if lowered in ('true', 'false', 'none'):
        return {'true': True, 'false': False, 'none': None}[lowered]
    if text.startswith('[') and text.endswith(']') and not any(c in text[1:-1] for c in '[](){}'):
        return [parse_value(word.strip()) for word in text[1:-1].split(',') if word.strip()]
    return text


LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG, ``--work-dir``, ``--cfg-options``, ``--launcher``: for every tool that builds a Runner."""
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('--work-dir', help='where results go; default work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValue,
        default={},
        metavar='KEY=VALUE',
        help='overrides, such as train_dataloader.batch_size=4 or param_scheduler.0.end=100',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes are started')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(args: argparse.Namespace) -> Any:
    """Read the config a tool was given, check the files it needs, settle work directory and launcher.

    Args:
        args: what :func:`add_config_arguments` parsed.
    Returns:
        a mmengine ``Config``.
    """
    from ..config import check_needs, load_config

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config, args.cfg_options)
    check_needs(config)
    config.work_dir = args.work_dir or config.get('work_dir') or default_work_dir(args.config)
    config.launcher = args.launcher
    return config


def default_work_dir(config_path: str | os.PathLike[str]) -> str:
    """``work_dirs/<name of the config>``."""
    return os.path.join('work_dirs', Path(config_path).stem)
