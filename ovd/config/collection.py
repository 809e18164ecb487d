"""The configs that come with the package, by file name, from any working directory."""

import difflib
import os
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')  # in an installed wheel; in a checkout
CONFIG_ROOT = next((folder for folder in _FOLDERS if (folder / '_base_').is_dir()), _FOLDERS[-1])

# Configs that were merged into others, and what to use instead.
_MERGED = {
    f'{name}_to_{suffix}': instead
    for name, parent in (
        ('glip_l', 'glip_l'),
        ('glip_t_a', 'glip_t_a_o365'),
        ('glip_t_c', 'glip_t_c_o365_goldg'),
        ('glip_t_cap4m', 'glip_t_cap4m'),
    )
    for suffix, instead in (
        ('coco', f'configs/{parent}.py'),
        ('lvis_minival', f'configs/{name}_to_lvis.py --cfg-options split=minival'),
    )
}


def find_config(path: str | os.PathLike[str]) -> Path:
    """The file of a config.

    Args:
        path: an existing file; or the name of a config of the collection, with or without ``.py``, alone or
            behind ``configs/``: the folder inside the collection need not be given.
    Raises:
        FileNotFoundError: names the most similar configs.
    """
    given = Path(path)
    if given.is_file():
        return given
    known = collection()
    if len(given.parts) == 1 or 'configs' in given.parts[:-1]:
        name = given.name.removesuffix('.py')
        if name in known:
            return known[name]
        if name in _MERGED:
            raise FileNotFoundError(f'config {path} was merged into another: use {_MERGED[name]}')
    similar = difflib.get_close_matches(given.stem, known, n=3)
    raise FileNotFoundError(
        f'config {path} does not exist'
        + ('' if given.is_absolute() else f' in {Path.cwd()}')
        + (f'; similar configs of {CONFIG_ROOT}: {", ".join(similar)}' if similar else '')
    )


@lru_cache(maxsize=1)
def collection() -> dict[str, Path]:
    """Every config of the collection by its name; bases are no configs."""
    files = sorted(CONFIG_ROOT.rglob('*.py'))
    return {file.stem: file for file in files if '_base_' not in file.relative_to(CONFIG_ROOT).parts}
