"""TextSource: where the class vectors of a model come from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..text.templates import PromptSet, Templates, get_templates
from ..text.vocabulary import Vocabulary
from .text_embeddings import TextEmbeddings
from .text_encoder import TextBackend, TextEncoder

_KEPT = 16  # vocabularies whose vectors stay in memory


class TextSource:
    """Turns words into class vectors, from a file, from a text tower, or both.

    A plain object on purpose: the tower inside is neither trained, nor moved, nor saved with the detector.
    It is opened when a word is first needed, so a model can be built, converted or loaded without it.

    Args:
        vocabulary: any spelling that ``Vocabulary.parse`` reads; by default the words of the file.
        templates: name of a template set, or a list of templates.
        encoder: arguments of ``open_text_encoder``, or a ready encoder whose weights may change.
        embeddings: a ``.vocab.safetensors`` file; serves the words it holds. Another tower than ``encoder``
            must not have made it, which is checked where that lies in a file or folder.
        normalize_each: see ``TextEmbeddings.build``.
        shuffled: a control experiment, which tells what the words contribute: every novel class gets the
            vectors of the next novel one (every class those of the next, where fewer than two are novel).
    """

    def __init__(
        self,
        vocabulary: Any = None,
        templates: str | Sequence[str] = 'vild63',
        encoder: Mapping[str, Any] | TextBackend | None = None,
        embeddings: str | Path | None = None,
        normalize_each: bool = True,
        shuffled: bool = False,
    ) -> None:
        if encoder is None and embeddings is None:
            raise ValueError(
                'text needs `encoder` (a text tower), `embeddings` (a .vocab.safetensors file) or both'
            )
        if vocabulary is None and embeddings is None and isinstance(encoder, Mapping):
            raise ValueError('text needs `vocabulary`, the words to look for, or a file that holds them')
        self._vocabulary = None if vocabulary is None else Vocabulary.parse(vocabulary)
        self.templates = templates
        self._encoder_config = dict(encoder) if isinstance(encoder, Mapping) else None
        self._path = embeddings
        self._own: TextBackend | None = None if isinstance(encoder, Mapping) else encoder
        self._encoder: TextBackend | None = self._own
        self._normalize_each = normalize_each
        self._shuffled = shuffled
        self._file: TextEmbeddings | None = None
        self._cache: dict[tuple[str, PromptSet, str], TextEmbeddings] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the configuration."""
        if self._vocabulary is None and self._path is None:
            raise ValueError(
                'no vocabulary: set `model.text.vocabulary` in the config or call `set_vocabulary()`'
            )
        if self._vocabulary is None:
            self._vocabulary = self._stored().vocabulary
        return self._vocabulary

    @property
    def encoder(self) -> TextBackend:
        """The text tower, opened on first use."""
        if self._encoder is None:
            if self._encoder_config is None:
                raise ValueError(
                    f'{self._path} does not hold these words and text.encoder names no tower to encode them; '
                    f'it holds {_some(self._stored().vocabulary.names)}'
                )
            self._encoder = open_text_encoder(self._encoder_config)
        return self._encoder

    def embed(self, vocabulary: Vocabulary, templates: 'Templates | None' = None) -> TextEmbeddings:
        """Class vectors of the words; those of the last few vocabularies are kept."""
        prompts = get_templates(self.templates if templates is None else templates)
        key = (vocabulary.content_hash, prompts, '' if self._own is None else self._own.fingerprint)
        if key not in self._cache:
            found = None if templates is not None or self._path is None else self._from_file(vocabulary)
            if found is None:
                found = TextEmbeddings.build(
                    vocabulary, prompts, self.encoder, normalize_each=self._normalize_each
                )
            self._cache[key] = _exchanged(found) if self._shuffled else found
            while len(self._cache) > _KEPT:
                del self._cache[next(iter(self._cache))]
        return self._cache[key]

    def _has_local_tower(self) -> bool:
        """Whether the configured tower lies in a file or folder, so that looking at it fetches nothing."""
        named = self._encoder_config or {}
        return any(os.path.exists(named.get(key) or '') for key in ('model', 'pretrained'))

    def _stored(self) -> TextEmbeddings:
        if self._file is None:
            assert self._path is not None
            self._file = TextEmbeddings.load(self._path)
        return self._file

    def _from_file(self, vocabulary: Vocabulary) -> TextEmbeddings | None:
        """The file's rows in the order of the words, or None when a word is not in the file."""
        stored = self._stored()
        if stored.encoder_fingerprint and (self._encoder is not None or self._has_local_tower()):
            stored.check_encoder(self.encoder.fingerprint, str(self._path))
        rows = {name: row for row, name in enumerate(stored.vocabulary.names)}
        if any(name not in rows for name in vocabulary.names):
            return None
        picked = torch.tensor([rows[name] for name in vocabulary.names])
        return TextEmbeddings(
            embeddings=stored.embeddings[picked],
            vocabulary=vocabulary,
            templates=stored.templates,
            encoder_fingerprint=stored.encoder_fingerprint,
        )


def text_half(tower: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``open_text_encoder`` for the text encoder that belongs to an image tower."""
    if tower.get('kind') == 'labels':
        return dict(tower)
    return {key: tower[key] for key in ('kind', 'model', 'pretrained', 'dtype') if key in tower}


def open_text_encoder(config: Mapping[str, Any]) -> TextBackend:
    """The text encoder of a configuration.

    Args:
        config: ``kind`` 'clip' (default) with the arguments of ``TextEncoder``, 'tips' with those of
            ``TipsText``, or 'labels' with those of ``load_label_tower``.
    """
    options = dict(config)
    kind = options.pop('kind', 'clip')
    if kind == 'clip':
        return TextEncoder(**options)
    if kind == 'tips':
        from .dense.tips import TipsText

        return TipsText(**options)
    if kind == 'labels':
        from .label_tower.tower import load_label_tower

        return load_label_tower(**options).text
    raise ValueError(f"text encoder kind {kind!r} is none of 'clip', 'tips', 'labels'")


def _exchanged(text_embeddings: TextEmbeddings) -> TextEmbeddings:
    """The same words with the vectors of the novel classes moved on by one place, or of all classes."""
    is_novel = torch.tensor(text_embeddings.vocabulary.is_novel)
    moved = (is_novel if is_novel.sum() > 1 else torch.ones_like(is_novel)).nonzero()[:, 0]
    embeddings = text_embeddings.embeddings.clone()
    embeddings[moved] = text_embeddings.embeddings[moved.roll(-1)]
    return replace(text_embeddings, embeddings=embeddings)


def _some(names: Sequence[str], count: int = 5) -> str:
    """The first few names, for a message."""
    tail = f' and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(repr(name) for name in names[:count]) + tail
