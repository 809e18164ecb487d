"""Annotating pictures without annotations: answers kept part by part, so that a killed job continues.

A part depends on its own pictures only and appears by an atomic rename; the files that the user asked for are
written once all parts are there.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_path, write_json
from ..inference.pictures.sources import Picture
from ..inference.pictures.writers import FORMATS, Record, number

FORMAT = 'ovd.labels/1'


class PhotoLabelling:
    """A folder of labels in the making.

    Args:
        out: folder of the results; parts are kept in ``.parts`` inside it.
        pictures: all of them; the same ones, in the same order, when the job continues.
        settings: what the labels depend on, as JSON values; another value refuses to continue.
        names: the words, in the order of their labels.
        part_size: pictures of a part, the unit that a killed job repeats.
    Raises:
        ValueError: ``out`` holds labels in the making of other settings or pictures; they are named.
    """

    def __init__(
        self,
        out: Path,
        pictures: Sequence[Picture],
        settings: Mapping[str, Any],
        names: Sequence[str],
        part_size: int = 16,
    ) -> None:
        self.out = out
        self.names = list(names)
        self.parts = out / '.parts'
        self.plan = [
            list(pictures[start : start + part_size]) for start in range(0, len(pictures), part_size)
        ]
        header = {
            'format': FORMAT,
            'part_size': part_size,
            'pictures': [picture.name for picture in pictures],
            'names': self.names,
            **json.loads(json.dumps(settings)),
        }
        path = self.parts / 'header.json'
        if path.is_file():
            known = json.loads(path.read_text(encoding='utf-8'))
            changed = sorted(key for key in {*known, *header} if known.get(key) != header.get(key))
            if changed:
                raise ValueError(
                    f'{out} holds unfinished labels with other settings ({", ".join(changed)}): choose '
                    f'another --out or delete {self.parts}'
                )
        else:
            write_json(path, header, indent=None)
        self.settings = header

    def pending(self) -> list[int]:
        """Parts that are not on disk."""
        return [index for index in range(len(self.plan)) if not self._part(index).is_file()]

    def run(
        self,
        annotate: Callable[[Sequence[Picture]], Iterator[tuple[Picture, Record | None, str]]],
        on_picture: Callable[[], object] | None = None,
    ) -> None:
        """Annotate the pending parts.

        Args:
            annotate: gives, for each picture in order, its record, or None and what is wrong with it.
            on_picture: called after each picture, for a progress bar.
        """
        for index in self.pending():
            lines = []
            for picture, record, problem in annotate(self.plan[index]):
                lines.append(
                    {'image': picture.name, 'broken': problem} if record is None else record._asdict()
                )
                if on_picture is not None:
                    on_picture()
            with atomic_path(self._part(index)) as temporary:
                temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')

    def finish(self, formats: Sequence[str]) -> tuple[list[Record], list[str]]:
        """Write the files of the formats, see ``FORMATS``, and remove the parts.

        Returns:
            the records, and a line for each picture that could not be read.
        """
        records, broken = [], []
        for index in range(len(self.plan)):
            for line in self._part(index).read_text(encoding='utf-8').splitlines():
                content = json.loads(line)
                if 'broken' in content:
                    broken.append(f'{content["image"]}: {content["broken"]}')
                else:
                    records.append(Record(**content))
        ids = number(records, self.names)
        for name in formats:
            FORMATS[name](records, ids, self.out)
        write_json(self.out / 'labels.json', {**self.settings, 'broken': broken})
        shutil.rmtree(self.parts)
        return records, broken

    def _part(self, index: int) -> Path:
        return self.parts / f'part-{index:06d}.jsonl'
