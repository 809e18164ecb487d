"""The command ``ovd``: its verbs by name, each imported when it is called.

``ovd --help`` imports Typer and nothing else of weight. To add a verb: a module in a folder of ``verbs`` and
a line in ``VERBS``. A module has either ``app``, a Typer application, or ``main(argv, program)``, which reads
its own arguments: those verbs are also scripts in ``tools/``, where ``--cfg-options`` takes several values.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .console import run_tool, say


class Verb(NamedTuple):
    """A verb of the command.

    Attributes:
        module: in ``ovd.cli.verbs``.
        help: one line.
        own_parser: whether the module reads its arguments itself.
        app: name of the Typer application in the module.
    """

    module: str
    help: str
    own_parser: bool = False
    app: str = 'app'


VERBS = {
    'predict': Verb('pictures.predict', 'Find words in pictures: drawings, tables and annotation files.'),
    'label': Verb('pictures.label', 'Annotate a folder of pictures; resumable.'),
    'demo': Verb('pictures.demo', 'Answer questions about drawn pictures, or photographs.'),
    'train': Verb('runs.training', 'Train the model of a config.', own_parser=True),
    'test': Verb('runs.testing', 'Evaluate weights; metrics with their protocol.', own_parser=True),
    'calibrate': Verb(
        'runs.calibrating', 'Find the thresholds at which answers are mostly right.', own_parser=True
    ),
    'configs': Verb('runs.configs', 'List the configs of the package, or copy one.'),
    'models': Verb('weights.models', 'List published models and those on this disk.', app='models_app'),
    'fetch': Verb('weights.models', 'Download and convert a published model.', app='fetch_app'),
    'pack': Verb('weights.models', 'Make a model folder of a training.', app='pack_app'),
    'convert': Verb(
        'weights.convert', 'Turn a published checkpoint into one of ours, or back.', own_parser=True
    ),
    'vocab': Verb('weights.vocab', 'Turn words into a file of class vectors.', own_parser=True),
    'cache': Verb('data.cache', 'Region stores: make, verify, info, import.', own_parser=True),
    'data': Verb('data.shapes', 'Draw the data set that ovd brings, OV-Shapes.', own_parser=True),
    'bench': Verb('runs.bench', 'Measure how fast a model answers on this machine.'),
    'doctor': Verb('doctor', 'Describe this installation, for a report of a problem.'),
}

app = typer.Typer(
    name='ovd',
    help='Open-vocabulary detection and segmentation: words in, boxes, masks and maps out.',
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)


class _Verbs(TyperGroup):
    """Imports a verb's module when the verb is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        if verb.own_parser:  # run by ``main``; here for the completion of the shell
            return TyperCommand(cmd_name, help=verb.help)
        command = typer.main.get_command(getattr(load(verb), verb.app))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section('Commands'):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@app.callback(cls=_Verbs, invoke_without_command=True)
def options(
    version: bool = typer.Option(False, '--version', help='Show the version and exit.'),
    debug: bool = typer.Option(False, '--debug', help='Show the traceback of an error, of any verb.'),
) -> None:
    if version:
        from ..version import __version__

        say(f'ovd {__version__}')
        raise typer.Exit


def load(verb: Verb) -> Any:
    """The module of a verb."""
    return importlib.import_module(f'{__package__}.verbs.{verb.module}')


def run(argv: Sequence[str] | None = None) -> int:
    """Run ``ovd`` with these arguments, by default those of the command line; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = '--debug' in arguments
    return run_tool(_dispatch, [word for word in arguments if word != '--debug'], debug)


def _dispatch(argv: Sequence[str] | None) -> int:
    """Call the verb's own parser, or Typer.

    Raises:
        ValueError: an unknown verb or option, or a value that does not fit; one line.
    """
    first, *rest = argv or ['--help']
    verb = VERBS.get(first)
    if verb is not None and verb.own_parser:
        code: int | None = load(verb).main(rest, f'ovd {first}')
        return code or 0
    try:
        return int(app([first, *rest], standalone_mode=False, prog_name='ovd') or 0)
    except Exception as error:
        if type(error).__name__ == 'Abort':
            raise KeyboardInterrupt from None
        if not hasattr(error, 'format_message'):
            raise
        place = f'ovd {first}' if verb is not None else 'ovd'
        raise ValueError(f'{error.format_message()} (see {place} --help)') from error


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == '__main__':
    main()
