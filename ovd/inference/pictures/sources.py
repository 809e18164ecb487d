"""The pictures of a command line (files, folders, globs, standard input) and the names of their results."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files import IMAGE_SUFFIXES

STDIN = '-'


@dataclass(frozen=True)
class Picture:
    """One picture to be asked about.

    Attributes:
        name: what the user called it; 'stdin' for standard input.
        stem: file name of its results, without ending; no two pictures of a command share it.
        path: the file; None for standard input.
        data: the bytes that came by standard input.
    """

    name: str
    stem: str
    path: Path | None = None
    data: bytes | None = None


def find_pictures(patterns: Sequence[str], folder: Path, stdin: bytes = b'') -> list[Picture]:
    """The pictures of all arguments, each once.

    Args:
        patterns: as for ``find_images``; ``-`` is standard input.
        folder: where results go: they are named so that none replaces a picture, or the JSON file beside it.
        stdin: what was read from standard input: the bytes of one image, or paths, one in a line.
    Raises:
        FileNotFoundError: see ``find_images``; or standard input is empty.
    """
    if STDIN not in patterns:
        paths = find_images(patterns)
        return [Picture(str(path), stem, path) for path, stem in zip(paths, output_stems(paths, folder))]
    if len(patterns) > 1:
        raise ValueError(f'{STDIN} stands for standard input and goes with no other picture')
    if not stdin:
        raise FileNotFoundError('standard input is empty: expected the bytes of an image, or paths')
    try:
        lines = [line.strip() for line in stdin.decode('utf-8').splitlines() if line.strip()]
    except UnicodeDecodeError:
        lines = []
    if not lines or any('\0' in line for line in lines):
        return [Picture('stdin', 'stdin', data=stdin)]
    return find_pictures(lines, folder)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Image files of all arguments in their order, each once.

    Folders and globs give what has the ending of an image and is not hidden; a file that is named is taken.

    Raises:
        FileNotFoundError: a file or folder that does not exist, a glob that matches no image, or a folder
            without images.
    """
    paths: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if not pattern:
            raise FileNotFoundError("image '' does not exist: the name is empty")
        if path.is_dir():
            found = [child for child in sorted(path.iterdir()) if is_image(child)]
            if not found:
                raise FileNotFoundError(f'folder {path} holds no image ({", ".join(IMAGE_SUFFIXES)})')
        elif path.exists():
            found = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
            found = [match for match in matches if is_image(match)]
            if not found and glob.has_magic(pattern):
                raise FileNotFoundError(f'no image matches {pattern!r}')
            if not found:
                raise FileNotFoundError(f'image {path} does not exist')
        for image in found:
            paths.setdefault(os.path.abspath(image), image)
    return list(paths.values())


def is_image(path: Path) -> bool:
    """Whether a file has the ending of an image and is not hidden."""
    return path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')


def output_stems(paths: Sequence[Path], folder: Path) -> list[str]:
    """File names without ending: the image's own, numbered where two agree or a file would be lost: an image,
    or the JSON file beside it, which may hold its annotations."""
    taken = {path.resolve() for path in paths}
    taken |= {file.resolve() for path in paths if (file := path.with_suffix('.json')).exists()}

    def results(stem: str) -> set[Path]:
        return {(folder / f'{stem}{ending}').resolve() for ending in ('.png', '.jpg', '.json')}

    stems = []
    for path in paths:
        stem, number = path.stem, 1
        while results(stem) & taken:
            number += 1
            stem = f'{path.stem}_{number}'
        taken |= results(stem)
        stems.append(stem)
    return stems
