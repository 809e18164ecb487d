"""Entries of the catalogue: data in JSON files, checked when they are read.

The files lie beside this module; further ones of the user's own in ``$OVD_HOME/catalogue``, where an entry of
a name that is known goes before ours.
Reading order: Entry, find_entry, entries, names, similar.
"""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..files import model_home

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: under which it is kept; may begin with a folder, 'bert/vocab.txt'.
        urls: where it is, the first that answers is taken; empty for one that is brought by hand.
        page: the page to get it from by hand, where no address gives the file itself.
        size: bytes, None where it is not published.
        about: bytes as a page rounds them, where it says no more.
        sha256: of the file, or the first hexadecimal digits of it; None where it is not published.
        optional: whether it may be absent.
    """

    name: str
    urls: tuple[str, ...] = ()
    page: str | None = None
    size: int | None = None
    about: int | None = None
    sha256: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Entry:
    """A published model.

    Attributes:
        name: by which it is asked for.
        title: a line about it.
        kind: 'detection', 'segmentation', 'grounding' or 'encoder'.
        converter: what turns the files into ours, see ``ovd.inference.model_folders.fetching.CONVERTERS``.
        files: what is fetched.
        config: name or path of the config that it fits, None for encoders.
        settings: changes to that config; '{download}' stands for the folder of the fetched files and
            '{home}' for ``$OVD_HOME``.
        requires: names of entries that it needs, such as its text encoder.
        commands: what of the command line it serves.
        licence: of the weights; None: not confirmed.
        source: page of the authors.
        figures: published values, each with data, metric, value and protocol.
        options: arguments of the converter.
        unverified: what could not be confirmed from a public page.
    """

    name: str
    title: str
    kind: str
    converter: str
    files: tuple[RemoteFile, ...]
    config: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    licence: str | None = None
    source: str | None = None
    figures: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of all files, rounded where a page rounds them; None where one is not known."""
        sizes = [file.size or file.about for file in self.files if not file.optional]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def find_entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        KeyError: there is none; the message names similar ones.
    """
    known = entries()
    if name not in known:
        close = similar(name)
        raise KeyError(
            f'{name!r} is not in the catalogue' + (f'; did you mean {", ".join(close)}?' if close else '')
        )
    return known[name]


def entries() -> dict[str, Entry]:
    """All entries by name, in the order of the files."""
    own = model_home() / 'catalogue'
    files = [*sorted(_FOLDER.glob('*.json')), *(sorted(own.glob('*.json')) if own.is_dir() else [])]
    found: dict[str, Entry] = {}
    for path in files:
        found |= {entry.name: entry for entry in _read(path, path.stat().st_mtime_ns, _endpoint())}
    return found


def names() -> list[str]:
    """Names of all entries."""
    return list(entries())


def similar(name: str) -> list[str]:
    """Names of entries that resemble another."""
    return difflib.get_close_matches(name.lower(), names(), n=3)


@lru_cache(maxsize=32)
def _read(path: Path, changed: int, endpoint: str) -> tuple[Entry, ...]:
    """The entries of a file, read again when it or the hub's address changes."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return tuple(_entry(item) for item in content['entries'])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'catalogue {path} cannot be read: {error}') from None


def _entry(item: Mapping[str, Any]) -> Entry:
    values = dict(item)
    name = values.get('name')
    if not isinstance(name, str) or set(name) & set('/\\') or name.startswith('.'):
        raise ValueError(f'an entry is named {name!r}')
    values['files'] = tuple(_file(file, name) for file in values['files'])
    for key in ('requires', 'commands', 'unverified', 'figures'):
        values[key] = tuple(values.get(key, ()))
    return Entry(**values)


def _file(item: Mapping[str, Any], entry: str) -> RemoteFile:
    """A file by its address, or by repository, revision and path on the Hugging Face hub."""
    values = dict(item)
    hub = values.pop('hub', None)
    urls = [values.pop('url')] if 'url' in values else []
    if hub is not None:
        revision = values.pop('revision', None) or 'main'
        paths = values.pop('paths', None) or [values.pop('path', values['name'])]
        urls = [hub_url(hub, revision, path) for path in paths]
    name = values['name']
    parts = Path(name).parts
    if Path(name).is_absolute() or '..' in parts or not parts:
        raise ValueError(f'{entry}: a file is named {name!r}')
    return RemoteFile(urls=tuple(urls), **values)


def hub_url(repository: str, revision: str, path: str) -> str:
    """The address of a file on the Hugging Face hub, or on ``$HF_ENDPOINT``."""
    return f'{_endpoint()}/{repository}/resolve/{revision}/{path}'


def _endpoint() -> str:
    return os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')
