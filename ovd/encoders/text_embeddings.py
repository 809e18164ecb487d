"""TextEmbeddings: one unit vector per class, with the words, templates and encoder it came from.

Everything downstream sees class names only through this matrix. Reading order: build, save and load,
from_matrix (matrices that others publish).
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.loading import load_metadata, load_tensors
from ..checkpoints.writing import save_tensors
from ..files import sha256_json
from ..text.templates import PromptSet, Templates, expand, get_templates
from ..text.vocabulary import Vocabulary, VocabularySpec
from .loading import PathLike
from .text_encoder import TextBackend

logger = logging.getLogger(__name__)

_FORMAT = 'ovd.text_embeddings'
_VERSION = '1'
_CHUNK = 2048
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Class vectors of a vocabulary.

    Attributes:
        embeddings: [K, D], unit length, float32, on the CPU.
        vocabulary: K classes, in the order of the rows.
        templates: the prompt templates; empty when they are not known.
        encoder_fingerprint: of the text encoder; '' when it is not known.
    """

    embeddings: Tensor
    vocabulary: Vocabulary
    templates: tuple[str, ...]
    encoder_fingerprint: str

    def __post_init__(self) -> None:
        shape = tuple(self.embeddings.shape)
        if len(shape) != 2 or shape[0] != len(self.vocabulary):
            raise ValueError(f'{len(self.vocabulary)} classes came with embeddings of shape {list(shape)}')
        if self.embeddings.dtype != torch.float32:
            raise ValueError(f'text embeddings must be float32, got {self.embeddings.dtype}')
        lengths = self.embeddings.norm(dim=-1)
        wrong = (~((lengths - 1).abs() < _TOLERANCE)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f'the text embedding of class {wrong[0]} {self.vocabulary.names[wrong[0]]!r} has length '
                f'{lengths[wrong[0]].item():.4g}, expected 1'
            )

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def embed_dim(self) -> int:
        """Width D of the joint space."""
        return self.embeddings.shape[1]

    @classmethod
    def build(
        cls,
        vocabulary: VocabularySpec,
        templates: Templates,
        encoder: TextBackend,
        batch_size: int = 256,
        cache_dir: PathLike | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        normalize_each: bool = True,
    ) -> 'TextEmbeddings':
        """Average the prompts of each class into one unit vector.

        Prompts are normalised, averaged over the templates and normalised; a class with synonyms is the
        normalised mean over them. Results are kept on disk under a key of encoder, precision and prompts,
        so a second call costs one small read.

        Args:
            templates: a named set, one template or a list of them, see ``get_templates``.
            encoder: maps texts to vectors that need not be of unit length.
            batch_size: prompts per forward; affects memory only.
            cache_dir: folder of the cache, by default ``default_cache_dir()``.
            on_progress: called with (prompts done, prompts in all) while encoding.
            normalize_each: False averages the prompts as they leave the encoder.
        Raises:
            ValueError: see ``Vocabulary.parse`` and ``get_templates``.

        Source: CLIP, Radford et al., ICML 2021, Sec. 3.1.4; synonyms as in ViLD, Gu et al., ICLR 2022.
        """
        vocabulary, prompt_set = Vocabulary.parse(vocabulary), get_templates(templates)
        key = _cache_key(vocabulary, prompt_set, encoder, normalize_each)
        path = (
            (default_cache_dir() if cache_dir is None else Path(cache_dir))
            / 'text_embeddings'
            / f'{key}.safetensors'
        )
        matrix = _read_cache(path, (len(vocabulary), encoder.embed_dim))
        if matrix is None:
            matrix = _encode(vocabulary, prompt_set, encoder, batch_size, on_progress, normalize_each)
            _write_cache(path, matrix)
        return cls(matrix, vocabulary, prompt_set.templates, encoder.fingerprint)

    @classmethod
    def from_matrix(
        cls,
        path: PathLike,
        vocabulary: VocabularySpec,
        templates: Templates = (),
        encoder_fingerprint: str = '',
        orientation: str = 'auto',
    ) -> 'TextEmbeddings':
        """Import a class matrix that someone else published.

        Args:
            path: .npy file, [K, D] or [D, K], rows of any length but zero.
            vocabulary: K classes in the order of the matrix.
            templates, encoder_fingerprint: what it was made with, if that is known.
            orientation: 'rows' for [K, D], 'columns' for [D, K], 'auto' to tell by K.
        """
        vocabulary = Vocabulary.parse(vocabulary)
        matrix = _oriented(_read_npy(Path(path)), len(vocabulary), orientation, path)
        lengths = np.linalg.norm(matrix, axis=1)
        for index in np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)):
            raise ValueError(
                f'{path}: class {index} {vocabulary.names[index]!r} has a vector of length {lengths[index]}'
            )
        prompts = get_templates(templates).templates if templates else ()
        return cls(
            torch.from_numpy((matrix / lengths[:, None]).astype(np.float32)),
            vocabulary,
            prompts,
            encoder_fingerprint,
        )

    def save(self, path: PathLike) -> None:
        """Write one safetensors file, by custom named ``*.vocab.safetensors``; equal content, equal bytes."""
        metadata = {
            'format': _FORMAT,
            'version': _VERSION,
            'vocabulary': json.dumps(self.vocabulary.to_dict(), ensure_ascii=False),
            'templates': json.dumps(self.templates, ensure_ascii=False),
            'encoder_fingerprint': self.encoder_fingerprint,
        }
        save_tensors(path, {'embeddings': self.embeddings}, metadata)

    @classmethod
    def load(cls, path: PathLike, expected_fingerprint: str | None = None) -> 'TextEmbeddings':
        """Read a file written by ``save``.

        Args:
            expected_fingerprint: of the encoder the embeddings are going to be compared with.
        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, a damaged one, or one made with another encoder.
        """
        metadata = load_metadata(path)
        if metadata.get('format') != _FORMAT:
            raise ValueError(f'{path} holds no text embeddings; make one with tools/build_text_embeddings.py')
        if metadata.get('version') != _VERSION:
            raise ValueError(f'{path} has format version {metadata.get("version")!r}, expected {_VERSION!r}')
        try:
            vocabulary = Vocabulary.parse(json.loads(metadata['vocabulary']))
            templates = tuple(json.loads(metadata['templates']))
            fingerprint = metadata['encoder_fingerprint']
            loaded = cls(load_tensors(path)['embeddings'], vocabulary, templates, fingerprint)
        except (ValueError, KeyError) as error:
            raise ValueError(f'{path} is damaged: {error}') from None
        loaded.check_encoder(expected_fingerprint, str(path))
        return loaded

    def check_encoder(self, expected_fingerprint: str | None, source: str = 'the text embeddings') -> None:
        """Refuse to go on (ValueError) when another encoder, or an unknown one, made these vectors."""
        if expected_fingerprint in (None, self.encoder_fingerprint):
            return
        made_by = f'encoder {self.encoder_fingerprint}' if self.encoder_fingerprint else 'an unknown encoder'
        raise ValueError(
            f'{source}: made with {made_by}, but the model uses encoder {expected_fingerprint}; '
            'build the embeddings again with that encoder'
        )


def default_cache_dir() -> Path:
    """``$OVD_CACHE``, or ``~/.cache/ovd``."""
    return Path(os.environ.get('OVD_CACHE') or Path.home() / '.cache' / 'ovd')


def _encode(
    vocabulary: Vocabulary,
    prompts: PromptSet,
    encoder: TextBackend,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
    normalize_each: bool,
) -> Tensor:
    """[K, D] on the CPU; the encoder gets prompts of many classes at once, to sort them by length."""
    texts = [text for group in vocabulary.synonyms for text in group]
    owners = torch.tensor([label for label, group in enumerate(vocabulary.synonyms) for _ in group])
    total, done = len(texts) * len(prompts), 0
    per_text = []
    for chunk in _chunks(texts, max(1, _CHUNK // len(prompts))):
        features = encoder.encode([prompt for text in chunk for prompt in expand(text, prompts)], batch_size)
        features = F.normalize(features.float(), dim=-1) if normalize_each else features.float()
        mean = features.view(len(chunk), len(prompts), -1).mean(dim=1)
        per_text.append(F.normalize(mean, dim=-1).cpu())
        done += len(chunk) * len(prompts)
        if on_progress is not None:
            on_progress(done, total)
    sums = torch.zeros(len(vocabulary), encoder.embed_dim).index_add_(0, owners, torch.cat(per_text))
    return F.normalize(sums, dim=-1)


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cache_key(vocabulary: Vocabulary, prompts: PromptSet, encoder: TextBackend, normalize_each: bool) -> str:
    content = {
        'version': _VERSION,
        'encoder': encoder.fingerprint,
        'dtype': str(encoder.dtype),
        'templates': prompts.templates,
        'spelling': prompts.spelling,
        'texts': vocabulary.synonyms,
    }
    return sha256_json(content if normalize_each else content | {'normalize_each': False})


def _read_cache(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The matrix kept at ``path``; None when there is none, or none that can be used."""
    if not path.is_file():
        return None
    try:
        matrix = load_tensors(path)['embeddings']
    except (ValueError, KeyError, OSError) as error:
        logger.warning('rebuilding the text embeddings, their cache is damaged: %s', error)
        return None
    return matrix if tuple(matrix.shape) == shape else None


def _write_cache(path: Path, matrix: Tensor) -> None:
    try:
        save_tensors(path, {'embeddings': matrix})
    except OSError as error:
        logger.warning('text embeddings are not cached: %s', error)


def _read_npy(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not path.is_file():
        raise FileNotFoundError(f'matrix file {path} does not exist')
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} is no .npy file of numbers: {error}') from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in 'fiu':
        found = f'{matrix.dtype} {list(matrix.shape)}' if isinstance(matrix, np.ndarray) else 'an archive'
        raise ValueError(f'{path} holds {found}, expected one matrix [K, D] or [D, K] of numbers')
    return matrix.astype(np.float64)


def _oriented(
    matrix: np.ndarray[Any, np.dtype[np.float64]], num_classes: int, orientation: str, path: PathLike
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The matrix as [K, D]."""
    fits = {'rows': matrix.shape[0] == num_classes, 'columns': matrix.shape[1] == num_classes}
    if orientation == 'auto':
        if all(fits.values()):
            raise ValueError(
                f"{path} is {list(matrix.shape)}, {num_classes} classes: say orientation='rows' or 'columns'"
            )
        orientation = 'columns' if fits['columns'] else 'rows'
    if orientation not in fits:
        raise ValueError(f"orientation {orientation!r} is none of 'auto', 'rows', 'columns'")
    if not fits[orientation]:
        raise ValueError(f'{path} is {list(matrix.shape)}, which does not fit {num_classes} class names')
    return matrix.T if orientation == 'columns' else matrix
