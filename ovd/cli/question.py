"""What ``ovd predict`` and ``ovd label`` have in common: a question, a model, thresholds; checked early.

Everything that needs no model is checked before torch is imported: words, sentences for models that read
none, thresholds of names that were not asked for, pictures that do not exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text.vocabulary import Vocabulary
from .console import parse_value

if TYPE_CHECKING:
    from ..inference.predictor import Predictor

# Models that read sentences; a test compares this with what the classes can do.
READS_SENTENCES = ('GLIP', 'GLIPv2')


@dataclass(frozen=True)
class ModelChoice:
    """Which model is asked.

    Attributes:
        name: of the catalogue, or the path of a model folder.
        config, checkpoint: of a training, instead of a name; the config alone where the model needs none.
        device: None chooses the GPU if there is one.
        options: changes to the config, KEY=VALUE.
    """

    name: str | None = None
    config: str | None = None
    checkpoint: str | None = None
    device: str | None = None
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is loaded, for a message."""
        return self.name or self.checkpoint or self.config or ''

    def check(self) -> None:
        """Refuse half a choice, and files that do not exist.

        Raises:
            ValueError, FileNotFoundError: one line.
        """
        if self.name is not None and (self.config or self.checkpoint):
            raise ValueError('--model names weights and config; leave out --config and --checkpoint')
        if self.name is None and not self.config:
            raise ValueError('which model? give --model NAME, or --config and --checkpoint')
        if self.name is not None and self.options:
            raise ValueError('-o changes a config: give --config and --checkpoint instead of --model')
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise FileNotFoundError(f'checkpoint {self.checkpoint} does not exist')

    def model_type(self) -> str | None:
        """The ``type`` of the model, such as 'ovd.LSeg'."""
        if self.config is None:
            from ..inference.model_folders.model_folder import find_model_folder, read_model_folder

            assert self.name is not None
            settings: dict[str, Any] = dict(read_model_folder(find_model_folder(self.name)).model)
            return settings.get('type')
        from ..config import load_config

        kind: str | None = load_config(self.config, pairs(self.options)).model.get('type')
        return kind

    def locate(self) -> None:
        """Refuse a model that is not on this disk; imports torch.

        Raises:
            FileNotFoundError: with the command that fetches it, or similar names.
        """
        if self.name is not None:
            from ..inference.model_folders.model_folder import find_model_folder

            find_model_folder(self.name)

    def load(self) -> 'Predictor':
        """The model, ready for questions."""
        from ..config import check_needs, load_config
        from ..inference.predictor import Predictor

        if self.name is not None:
            return Predictor.from_pretrained(self.name, self.device)
        assert self.config is not None
        config = load_config(self.config, pairs(self.options))
        check_needs(config, 'demo')
        return Predictor(config, self.checkpoint, self.device)

    def fingerprint(self) -> str:
        """SHA-256 of the weights, of a model folder's hashes, or of a config that needs no weights."""
        from ..files import sha256_file, sha256_json

        if self.checkpoint is not None:
            return sha256_file(self.checkpoint)
        if self.config is not None:
            from ..config import load_config

            return sha256_json(load_config(self.config, pairs(self.options)).to_dict())
        from ..inference.model_folders.model_folder import HASHES, find_model_folder

        assert self.name is not None
        return sha256_file(find_model_folder(self.name) / HASHES)

    def describe(self) -> dict[str, Any]:
        """For the files that say how they were made."""
        if self.name is not None:
            return {'model': self.name}
        return {'config': self.config, 'checkpoint': self.checkpoint, 'options': list(self.options)}


def pairs(options: Sequence[str]) -> dict[str, Any]:
    """``['a.b=1', 'c=x']`` as a dict of Python values.

    Raises:
        ValueError: an option without a key or an equals sign.
    """
    parsed = {}
    for option in options:
        key, equals, text = option.partition('=')
        if not key or not equals:
            raise ValueError(f'-o expects KEY=VALUE, got {option!r}')
        parsed[key] = parse_value(text)
    return parsed


def parse_thresholds(given: Sequence[str], names: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """``['0.4', 'dog=0.6']`` as the common threshold, None where none is given, and those of names.

    Raises:
        ValueError: no number from 0 to 1.
        KeyError: a name that is not asked for.
    """
    common: float | None = None
    named: dict[str, float] = {}
    for text in (part.strip() for entry in given for part in entry.split(',')):
        name, equals, number = text.rpartition('=')
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ValueError(f'--threshold expects a number from 0 to 1, or NAME=NUMBER, got {text!r}')
        if not equals:
            common = value
        elif name not in names:
            raise KeyError(f'--threshold {text}: {name!r} is not asked for; the words are {", ".join(names)}')
        else:
            named[name] = value
    return common, named


def parse_words(text: str) -> Vocabulary:
    """The words of a question; refuses none, and equal ones.

    Raises:
        ValueError, FileNotFoundError: see ``Vocabulary.parse``.
    """
    return Vocabulary.parse(text)


def check_sentence(text: str, model_type: str | None) -> None:
    """Refuse an empty sentence, or a model that reads none.

    Args:
        model_type: of the config, such as 'ovd.LSeg'; None where it is not known yet.
    Raises:
        ValueError: one line.
    """
    if not text.strip():
        raise ValueError('the sentence is empty')
    kind = None if model_type is None else model_type.rpartition('.')[2]
    if kind is not None and kind not in READS_SENTENCES:
        raise ValueError(
            f'{kind} is asked for lists of words; --sentence is for models that read sentences: '
            f'{", ".join(READS_SENTENCES)}'
        )
