"""Background thresholds: one for all classes, one per class, or predicted from text embeddings.

Fitted by ``tools/calibrate_thresholds.py`` and stored as JSON by class name, so class order does not matter.
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
from ...options import check_option

_FORMAT = 'ovd.thresholds'
_VERSION = 1
KINDS = ('overall', 'per_class', 'learned')


@dataclass(frozen=True)
class Thresholds:
    """Result of a calibration.

    Attributes:
        overall: threshold for all classes.
        per_class: by class name; may be empty.
        weight: w [D] of the threshold sigmoid(w . t + b) of a class with text embedding t; None if not
            fitted.
        bias: b.
        encoder_fingerprint: of the text encoder of w; '' if unknown.
        fit: how the thresholds were fitted, JSON values for the reader.
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

    def values(self, text: TextEmbeddings, kind: str, fallback: str = 'error') -> Tensor:
        """Threshold of each class of a vocabulary.

        Args:
            text: K classes.
            kind: 'overall', 'per_class' or 'learned'.
            fallback: with 'per_class', for classes without a threshold: 'error', 'overall' or 'learned'.
        Returns:
            [K] float32, on the CPU.
        Raises:
            ValueError: an unknown option; classes without a threshold; a learned threshold that was not
                fitted or belongs to another text encoder.
        """
        check_option('kind', kind, KINDS)
        check_option('fallback', fallback, ('error', 'overall', 'learned'))
        if kind == 'learned':
            return self._learned(text)
        values = torch.full((len(text),), float(self.overall))
        if kind == 'overall':
            return values
        names = text.vocabulary.names
        without = [name for name in names if name not in self.per_class]
        if without and fallback == 'error':
            raise ValueError(
                f'{len(without)} of {len(names)} classes have no threshold, such as {without[0]!r}: '
                f"calibrate with these classes, or set fallback='overall' or 'learned'"
            )
        if without and fallback == 'learned':
            values = self._learned(text)
        for label, name in enumerate(names):
            if name in self.per_class:
                values[label] = self.per_class[name]
        return values

    def _learned(self, text: TextEmbeddings) -> Tensor:
        if self.weight is None:
            raise ValueError('no learned threshold was fitted: that needs masks of at least 3 seen classes')
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
            ValueError: another format, or a damaged file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f'threshold file {path} does not exist; create it with tools/calibrate_thresholds.py'
            )
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            found = content['format'], content['version']
            if found != (_FORMAT, _VERSION):
                raise ValueError(f'format {found}, expected {(_FORMAT, _VERSION)}')
            learned = content.get('learned')
            return cls(
                overall=content['overall'],
                per_class=content['per_class'],
                weight=None if learned is None else tuple(learned['weight']),
                bias=0.0 if learned is None else learned['bias'],
                encoder_fingerprint=content.get('encoder_fingerprint', ''),
                fit=content.get('fit', {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f'{path} is not a valid threshold file: {error!r}') from None
