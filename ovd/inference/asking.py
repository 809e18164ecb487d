"""Words as a model is asked for them: the asked ones, then their rivals, encoded as one vocabulary.

A question belongs to its call: it is built once, kept, and applied to the model under a lock, so that several
threads can ask one model for different words.
Reading order: Question, WordQuestions.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..encoders.text_embeddings import TextEmbeddings
from ..text.vocabulary import Vocabulary
from .answering import AnswerOptions, choose_rivals, question_vocabulary

if TYPE_CHECKING:
    from ..models.base import OpenVocabularyModel

_KEPT = 16  # questions whose vectors stay in memory


@dataclass(frozen=True, eq=False)
class Question:
    """Words for a model.

    Attributes:
        asked: the K words that answers may have.
        whole: the asked words, then the rivals.
        ask: what the model's ``set_vocabulary`` takes.
    """

    asked: Vocabulary
    whole: Vocabulary
    ask: TextEmbeddings | Vocabulary

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of all labels, those of the rivals last."""
        return self.whole.labels


class WordQuestions:
    """Builds questions for one model and applies them to it.

    Args:
        model: its words at this moment, if it has some, are the ones it knows best: the default rivals.
    """

    def __init__(self, model: 'OpenVocabularyModel') -> None:
        self.model = model
        self.known = _vocabulary_of(model)
        self._built: dict[Any, Question] = {}
        self._applied: Question | None = None
        self._lock = threading.RLock()

    def build(self, words: Any, templates: Any = None, options: AnswerOptions | None = None) -> Question:
        """The question for some words; the last few are kept.

        Args:
            words: what ``Vocabulary.parse`` reads, ``TextEmbeddings``, or None for the model's own words.
            templates: prompt templates, by default those of the config.
            options: which rivals take part; None asks for the words alone, as ``tools/test.py`` does.
        Raises:
            ValueError: see ``Vocabulary.parse``, or a model without words of its own.
        """
        given = words if isinstance(words, TextEmbeddings) else None
        if given is not None:
            asked = given.vocabulary
        elif words is None and self.known is not None:
            asked = self.known
        else:
            asked = self.model.vocabulary if words is None else Vocabulary.parse(words)
        rivals = None if options is None else self._rivals(asked, options)
        key = (asked.content_hash, repr(templates), rivals, id(given))
        with self._lock:
            if key not in self._built:
                self._built[key] = self._encode(asked, given, templates, rivals)
                while len(self._built) > _KEPT:
                    del self._built[next(iter(self._built))]
            return self._built[key]

    @contextmanager
    def applied(self, question: Question | None) -> Iterator[None]:
        """Hold the model with these words in use (None: any words); other threads wait."""
        with self._lock:
            if question is not None and self._applied is not question:
                self.model.set_vocabulary(question.ask)
                self._applied = question
            yield

    def _rivals(self, asked: Vocabulary, options: AnswerOptions) -> tuple[str, ...]:
        candidates: Sequence[Any] = () if self.known is None else self.known.synonyms
        if options.rivals is not None:
            candidates = options.rivals
        return choose_rivals(asked, candidates, options.contrasts)

    def _encode(
        self,
        asked: Vocabulary,
        given: TextEmbeddings | None,
        templates: Any,
        rivals: tuple[str, ...] | None,
    ) -> Question:
        whole = asked if rivals is None else question_vocabulary(asked, rivals, self.known)
        encoded: Any = given if given is not None else self.model.encode_vocabulary(asked, templates)
        if not isinstance(encoded, TextEmbeddings):
            return Question(asked, whole, whole)
        if not rivals and whole == encoded.vocabulary:
            return Question(asked, whole, encoded)
        rivals = rivals or ()
        from_known = [name for name in rivals if self.known is not None and name in self.known.names]
        parts = dict(self._rows(self.known, from_known, templates))
        others = [name for name in rivals if name not in parts]
        if others:
            parts |= dict(self._rows(Vocabulary(others), others, templates))
        rows = torch.cat([encoded.embeddings, *(parts[name][None] for name in rivals)])
        joined = TextEmbeddings(rows, whole, encoded.templates, encoded.encoder_fingerprint)
        return Question(asked, whole, joined)

    def _rows(
        self, vocabulary: Vocabulary | None, names: Sequence[str], templates: Any
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The class vectors of some names of a vocabulary, which is encoded as a whole and so cached."""
        if vocabulary is None or not names:
            return
        encoded: Any = self.model.encode_vocabulary(vocabulary, templates)
        index = {name: row for row, name in enumerate(vocabulary.names)}
        for name in names:
            yield name, encoded.embeddings[index[name]]


def _vocabulary_of(model: 'OpenVocabularyModel') -> Vocabulary | None:
    try:
        return model.vocabulary
    except ValueError:  # neither in the config nor set
        return None
