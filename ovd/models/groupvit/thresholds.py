"""Thresholds below which a class is background: one for all, one per class, or one computed from its words.

Numbers are fitted by ``tools/calibrate_thresholds.py`` and travel as a JSON file with the class names inside,
so the order of the words never matters. Reading order: Thresholds (the file), Thresholds.values (its use).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoders.text_embeddings import TextEmbeddings
from ...encoders.text_encoder import check_same_encoder
from ...files import write_json

_FORMAT = 'ovd.thresholds'
_VERSION = 1
KINDS = ('overall', 'per_class', 'learned')


@dataclass(frozen=True)
class Thresholds:
    """What a calibration found.

    Attributes:
        overall: the one threshold for all classes.
        per_class: by class name; may be empty.
        weight: D numbers w of the threshold sigmoid(w . t + b) of a class with the unit text embedding t, or
            None when it was not fitted.
        bias: b.
        encoder_fingerprint: of the text encoder that w goes with; '' when it is not known.
        fit: how the numbers came about, JSON values for the reader.
    """

    overall: float
    per_class: Mapping[str, float] = field(default_factory=dict)
    weight: tuple[float, ...] | None = None
    bias: float = 0.0
    encoder_fingerprint: str = ''
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {'overall': self.overall, **self.per_class}.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f'the threshold of {name!r} is {value!r}, expected a finite number')
        if self.weight is not None and not all(math.isfinite(value) for value in (*self.weight, self.bias)):
            raise ValueError('the learned threshold has weights that are not finite')

    def values(self, text: TextEmbeddings, kind: str, missing: str = 'refuse') -> Tensor:
        """One threshold for each class of a vocabulary.

        Args:
            text: K classes.
            kind: 'overall', 'per_class' or 'learned'.
            missing: with 'per_class', what a class without a number of its own gets: 'refuse' is an error,
                'overall' and 'learned' are those thresholds.
        Returns:
            [K] float32, on the CPU.
        Raises:
            ValueError: an unknown kind; classes without a number; a learned threshold that was not fitted or
                belongs to another text encoder.
        """
        if kind not in KINDS:
            raise ValueError(f'thresholds of kind {kind!r}, expected one of {KINDS}')
        if missing not in ('refuse', 'overall', 'learned'):
            raise ValueError(f"missing={missing!r}, expected 'refuse', 'overall' or 'learned'")
        if kind == 'learned':
            return self._learned(text)
        values = torch.full((len(text),), float(self.overall))
        if kind == 'overall':
            return values
        names = text.vocabulary.names
        without = [name for name in names if name not in self.per_class]
        if without and missing == 'refuse':
            raise ValueError(
                f'{len(without)} of {len(names)} classes have no threshold of their own, the first is '
                f"{without[0]!r}: calibrate with these words, or say missing='overall' or 'learned'"
            )
        if without and missing == 'learned':
            values = self._learned(text)
        for label, name in enumerate(names):
            if name in self.per_class:
                values[label] = self.per_class[name]
        return values

    def _learned(self, text: TextEmbeddings) -> Tensor:
        if self.weight is None:
            raise ValueError(
                'these thresholds hold no learned threshold; it is fitted with masks of seen classes'
            )
        if len(self.weight) != text.embed_dim:
            raise ValueError(
                f'the learned threshold reads embeddings of width {len(self.weight)}, '
                f'the classes have {text.embed_dim}'
            )
        check_same_encoder(self.encoder_fingerprint, text.encoder_fingerprint, 'the learned thresholds')
        return torch.sigmoid(text.embeddings @ torch.tensor(self.weight) + self.bias)

    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        content = {'format': _FORMAT, 'version': _VERSION, 'overall': self.overall}
        content |= {'per_class': dict(self.per_class)}
        if self.weight is not None:
            content |= {'learned': {'weight': list(self.weight), 'bias': self.bias}}
        write_json(path, content | {'encoder_fingerprint': self.encoder_fingerprint, 'fit': dict(self.fit)})

    @classmethod
    def load(cls, path: str | Path) -> 'Thresholds':
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or a damaged one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f'threshold file {path} does not exist; tools/calibrate_thresholds.py makes it'
            )
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except json.JSONDecodeError as error:
            raise ValueError(f'{path} is no valid JSON: {error}') from None
        if not isinstance(content, dict) or content.get('format') != _FORMAT:
            raise ValueError(f'{path} holds no thresholds; make it with tools/calibrate_thresholds.py')
        if content.get('version') != _VERSION:
            raise ValueError(f'{path} has format version {content.get("version")!r}, expected {_VERSION}')
        learned = content.get('learned')
        try:
            return cls(
                overall=content['overall'],
                per_class=content['per_class'],
                weight=None if learned is None else tuple(learned['weight']),
                bias=0.0 if learned is None else learned['bias'],
                encoder_fingerprint=content.get('encoder_fingerprint', ''),
                fit=content.get('fit', {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f'{path} is damaged: {error!r}') from None
