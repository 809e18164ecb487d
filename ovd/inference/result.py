"""What every answer can do: show itself on its image, and go to a file or another package."""

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.images import ImageSource, as_rgb
from ..files import atomic_path

_PICTURES = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP'}


@dataclass(frozen=True)
class Result:
    """Base of ``Prediction`` and ``Segmentation``.

    Attributes:
        source: the image that was asked about, as it was given (path, array or PIL image); None where it was
            not kept.
        presence: of each asked name, shown or not: the best score of an object, or the share of the image
            that the largest patch of pixels covers; 0 where the name is nowhere. Empty for raw answers.
        seen_instead: names that were not asked for and won an object or pixels, with score or share.
        notices: what to know before trusting the answer, such as a picture unlike the training pictures.
    """

    source: Any = field(default=None, kw_only=True, repr=False, compare=False)
    presence: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    seen_instead: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)
    notices: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        raise NotImplementedError

    def draw(self, image: ImageSource, *args: Any, **options: Any) -> np.ndarray:
        """The answer on its image, uint8 RGB."""
        raise NotImplementedError

    def competition(self) -> dict[str, Any]:
        """Presence, names seen instead and notices as JSON values; nothing for raw answers."""
        if not self.presence:
            return {}
        return {
            'presence': dict(self.presence),
            'seen_instead': [{'name': name, 'score': score} for name, score in self.seen_instead],
            'notices': list(self.notices),
        }

    def to_json(self, indent: int | None = None) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def plot(self, image: Any = None, **options: Any) -> Image.Image:
        """The answer drawn on its image: ``plot().show()``, ``plot().save('answer.png')``.

        Args:
            image: path, RGB array or PIL image; by default the one that was asked about.
            options: of ``draw``.
        Raises:
            ValueError: the image was not kept, or has another size.
        """
        source = self.source if image is None else image
        if source is None:
            raise ValueError('this answer does not keep its image: pass it, plot(image)')
        return Image.fromarray(self.draw(as_rgb(source), **options))

    def save(self, path: str | os.PathLike[str], image: Any = None) -> Path:
        """Write a picture (.png, .jpg, .webp) or the values (.json), atomically.

        Args:
            path: file to write.
            image: as in ``plot``.
        Returns:
            the path.
        Raises:
            ValueError: another ending, or as ``plot``.
        """
        path = Path(path)
        write: Callable[[Path], Any]
        if path.suffix.lower() == '.json':
            write = partial(Path.write_text, data=self.to_json(2) + '\n', encoding='utf-8')
        elif path.suffix.lower() in _PICTURES:
            write = partial(self.plot(image).save, format=_PICTURES[path.suffix.lower()])
        else:
            endings = ', '.join(['.json', *_PICTURES])
            raise ValueError(f'cannot save an answer as {path.name!r}: expected one of {endings}')
        with atomic_path(path) as temporary:
            write(temporary)
        return path

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows; None where the image was not kept."""
        if self.source is None:
            return None
        stream = io.BytesIO()
        self.plot().save(stream, format='PNG')
        return stream.getvalue()
