"""``ovd configs``: what can be trained and tested by name."""

import ast
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ...console import say

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def configs(
    part: Annotated[str | None, typer.Argument(help='Only names that contain this.')] = None,
    copy: Annotated[str | None, typer.Option(metavar='NAME', help='Write this one, for editing.')] = None,
    out: Annotated[Path, typer.Option(help='Folder of the copy.')] = Path('configs'),
) -> None:
    """List the configs by name and first line; --copy writes one, with the bases it needs.

    ovd configs shapes
    ovd configs --copy vild_shapes
    """
    if copy is not None:
        for path in copy_config(copy, out):
            say(str(path))
        return

    from ....config.collection import collection

    found = {name: path for name, path in collection().items() if (part or '') in name}
    if not found:
        raise ValueError(f'no config has {part!r} in its name: ovd configs lists all')
    width = max(map(len, found))
    for name, path in found.items():
        say(f'{name:{width}}  {first_line(path)}')


def first_line(path: Path) -> str:
    """The first line of a config's head."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return text.partition('\n')[0]


def copy_config(name: str, out: Path) -> list[Path]:
    """Copy a config with its bases, laid out as in the package, so that it can be read where it lies.

    Args:
        name: of the config, or its path.
        out: folder that takes the place of the package's ``configs``.
    Returns:
        what was written; the config first.
    Raises:
        FileExistsError: a file is there already.
    """
    from ....config import CONFIG_ROOT, find_config

    sources = [find_config(name)]
    for source in sources:
        for base in bases_of(source):
            path = (source.parent / base).resolve()
            if path not in sources:
                sources.append(path)
    root = CONFIG_ROOT.resolve()
    targets = [out / source.resolve().relative_to(root) for source in sources]
    if targets[0].exists():
        raise FileExistsError(f'{targets[0]} exists already: choose another --out')
    written = []
    for source, target in zip(sources, targets):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
    return written


def bases_of(path: Path) -> list[str]:
    """The entries of ``_base_`` in a config that are files, not configs of other packages."""
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            value = ast.literal_eval(node.value)
            names = [value] if isinstance(value, str) else list(value)
            return [name for name in names if '::' not in name]
    return []
