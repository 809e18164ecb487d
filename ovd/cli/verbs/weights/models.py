"""``ovd models``, ``ovd fetch``, ``ovd pack``: models by name."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...console import say

models_app = typer.Typer(rich_markup_mode=None, add_completion=False)
fetch_app = typer.Typer(rich_markup_mode=None, add_completion=False)
pack_app = typer.Typer(rich_markup_mode=None, add_completion=False)


@models_app.command()
def models(
    name: Annotated[str | None, typer.Argument(help='Show one: files, figures, protocol, licence.')] = None,
    here: Annotated[bool, typer.Option('--here', help='Only those on this disk.')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='As JSON.')] = False,
) -> None:
    """List models: published ones, and those that were fetched or packed.

    ovd models --here
    """
    from ....inference.model_folders.fetching import list_models

    if name is not None:
        show_model(name, as_json)
        return
    rows = [row for row in list_models() if row.on_disk or not here]
    if as_json:
        values = [
            {
                'name': row.name,
                'kind': row.kind,
                'bytes': row.size,
                'licence': row.licence,
                'commands': list(row.commands),
                'on_disk': row.on_disk,
            }
            for row in rows
        ]
        say(json.dumps(values, indent=2))
        return
    if not rows:
        say('no model is on this disk: ovd fetch NAME downloads one, ovd pack makes one of a training')
        return
    width = max(len(row.name) for row in rows)
    say(f'{"name":{width}}  {"here":4}  {"size":>8}  {"task":12}  licence')
    for row in rows:
        here_text = 'yes' if row.on_disk else '-'
        licence = row.licence or ('yours' if row.entry is None else 'not confirmed')
        say(f'{row.name:{width}}  {here_text:4}  {readable(row.size):>8}  {row.kind:12}  {licence}')


def show_model(name: str, as_json: bool) -> None:
    """What the catalogue says of a model."""
    from ....catalogue.entries import find_entry
    from ....inference.model_folders.fetching import plan_fetch

    entry = find_entry(name)
    if as_json:
        import dataclasses

        say(json.dumps(dataclasses.asdict(entry), indent=2, default=str))
        return
    for line in plan_fetch(name).lines():
        say(line)
    say(f'task: {entry.kind}; for: {", ".join(f"ovd {verb}" for verb in entry.commands) or "encoders"}')
    if entry.source:
        say(f'page: {entry.source}')
    for figure in entry.figures:
        say('published: ' + ', '.join(f'{key} {value}' for key, value in figure.items()))


@fetch_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help='A model of ovd models.')],
    source: Annotated[
        Path | None, typer.Option('--from', help='A folder or file that you brought by hand.')
    ] = None,
    plan: Annotated[bool, typer.Option('--plan', help='Only say what would be done.')] = False,
    yes: Annotated[bool, typer.Option('--yes', '-y', help='Do not ask.')] = False,
    keep: Annotated[bool, typer.Option('--keep', help='Keep the published files beside the model.')] = False,
) -> None:
    """Download a published model and make a model folder of it, after showing what and asking.

    A download that was cut off goes on where it stopped; hashes are checked; nothing half is left.

        ovd fetch groupvit-gcc-yfcc --plan
    """
    from ....inference.model_folders.fetching import fetch as fetch_model
    from ....inference.model_folders.fetching import plan_fetch

    planned = plan_fetch(name, source)
    for line in planned.lines():
        say(line)
    if plan:
        return
    if not planned.is_there:
        say(f'to be downloaded: {readable(planned.size)}')
        if not yes:
            confirm()
    with DownloadBar() as bar:
        folder = fetch_model(name, source, bar.update, keep)
    say(f'{name} is in {folder}: ovd predict "..." IMAGES --model {name}')


def confirm() -> None:
    """Ask whether to go on.

    Raises:
        ValueError: there is nobody to ask, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise ValueError('nobody is there to ask: --yes goes on without asking')
    if not typer.confirm('go on?', default=True):
        raise ValueError('nothing was fetched')


class DownloadBar:
    """A bar for one file after another."""

    def __init__(self) -> None:
        self.file = ''
        self.bar: Any = None

    def __enter__(self) -> 'DownloadBar':
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, file: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` bytes of a file are there."""
        if file != self.file:
            from tqdm import tqdm

            if self.bar is not None:
                self.bar.close()
            self.file = file
            self.bar = tqdm(total=total, desc=file, unit='B', unit_scale=True, disable=None)
        self.bar.update(done - self.bar.n)


@pack_app.command()
def pack(
    config: Annotated[str, typer.Argument(help='Name or path of the config.')],
    checkpoint: Annotated[Path, typer.Argument(help='Its weights.')],
    out: Annotated[Path, typer.Argument(help='Folder to be made; its name is that of the model.')],
    replace: Annotated[
        bool, typer.Option('--replace', help='In place of a model folder that is there.')
    ] = False,
) -> None:
    """Make a model folder of a training: weights, settings, words and hashes in one place.

    ovd pack vild_shapes work_dirs/vild_shapes/latest.pth models/shapes
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f'checkpoint {checkpoint} does not exist')

    from ....inference.model_folders.packing import pack as pack_model

    folder = pack_model(config, checkpoint, out, replace=replace)
    say(f'{folder}: ovd predict "..." IMAGES --model {folder}')


def readable(size: int | None) -> str:
    """'1.2 GB', '340 MB', '?'."""
    if size is None:
        return '?'
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{max(1, round(size / 1e6))} MB'
