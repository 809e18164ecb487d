"""The model contract: what every open-vocabulary system is, whatever its heads look like.

Tools, the predictor, caching and evaluation rely on nothing else. ``docs/add_a_model.md`` has a detector and
a segmentor of a few lines each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from mmengine.model import BaseModel

from ..encoders.text_embeddings import TextEmbeddings
from ..encoders.text_encoder import check_same_encoder
from ..encoders.text_source import TextSource
from ..text.templates import TEMPLATES, Templates
from ..text.vocabulary import Vocabulary, VocabularySpec

Answers = Literal['boxes', 'pixels', 'phrases']


class EncodedVocabulary(Protocol):
    """What ``encode_vocabulary`` returns: the words, and whatever the heads want to know of them."""

    @property
    def vocabulary(self) -> Vocabulary: ...


class OpenVocabularyModel(BaseModel):
    """A model of mmengine whose classes are words; stands before the host's class in the bases.

    A system declares the traits below and implements ``use_text_embeddings``. Where heads want something else
    than one vector per class (learned prompts, a vector per template, token features), it overrides
    ``encode_vocabulary`` as well. Nothing in a checkpoint depends on the vocabulary.

    Args:
        text: arguments of ``TextSource``; None leaves the words to ``set_vocabulary``.
    Attributes:
        answers: what predictions hold: 'boxes' (``pred_instances``), 'pixels' (``pred_sem_seg``) or
            'phrases' (``pred_instances`` of the phrases of a sentence, no lists of names).
        reads_sentences: whether a sample may bring a sentence or names of its own as ``text``; such a model
            implements ``find_phrases`` and ``readable_phrases``.
        groups_pixels: whether it forms groups of pixels before any word is known, see ``GroupViT``.
        sample_keys: metainfo of training samples that ``loss`` reads.
        needs_checkpoint: False for models without weights of their own, made of towers that their
            configuration names.
    """

    answers: ClassVar[Answers]
    reads_sentences: ClassVar[bool] = False
    groups_pixels: ClassVar[bool] = False
    sample_keys: tuple[str, ...] = ()
    needs_checkpoint: ClassVar[bool] = True

    def __init__(self, *args: Any, text: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._text_source = None if text is None else TextSource(**text)
        self._encoded: EncodedVocabulary | None = None

    # --- words ------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """The words in use.

        Raises:
            ValueError: there are none yet, neither set nor in the configuration.
        """
        return self._source().vocabulary if self._encoded is None else self._encoded.vocabulary

    def set_vocabulary(
        self, vocabulary: 'TextEmbeddings | VocabularySpec', templates: 'Templates | None' = None
    ) -> None:
        """Answer with other words from now on; the last few vocabularies are kept encoded.

        Args:
            vocabulary: words in any spelling of ``Vocabulary.parse``, or finished class vectors.
            templates: prompt templates; by default those of the configuration.
        Raises:
            ValueError: bad words, class vectors of another encoder, or words that nothing here can encode.
        """
        encoded: EncodedVocabulary
        if isinstance(vocabulary, TextEmbeddings):
            self.check_embeddings(vocabulary)
            encoded = vocabulary
        else:
            encoded = self.encode_vocabulary(Vocabulary.parse(vocabulary), templates)
        self.use_text_embeddings(encoded)
        self._encoded = encoded

    def encode_vocabulary(
        self, vocabulary: Vocabulary, templates: 'Templates | None' = None
    ) -> EncodedVocabulary:
        """Turn words into what the heads want: by default ``TextEmbeddings`` [K, D], averaged over templates.

        Overridden by learned prompts (token ids or embeddings; their vectors follow in every step), by
        vectors per template [K, P, D] and by token features.

        Args:
            vocabulary: K classes.
            templates: prompt templates; by default those of the configuration.
        Returns:
            an object with ``vocabulary``; not an ``nn.Module``, which a checkpoint would then hold.
        """
        return self._source().embed(vocabulary, templates)

    def use_text_embeddings(self, text_embeddings: Any) -> None:
        """Hand the words to the heads.

        Args:
            text_embeddings: what ``encode_vocabulary`` returned, or ``TextEmbeddings``.
        """
        raise NotImplementedError

    def prepare_text(self) -> None:
        """Encode the vocabulary of the configuration if no words are in use yet.

        ``loss`` and ``predict`` call it first. A model that trains its text tower encodes its words again
        here when the weights have changed.

        Raises:
            ValueError: the configuration has no vocabulary either.
        """
        if self._encoded is None:
            self.set_vocabulary(self._source().vocabulary)

    @property
    def text_embeddings(self) -> TextEmbeddings:
        """The class vectors in use, encoded on first use.

        Raises:
            TypeError: the model encodes its vocabulary into something else than class vectors.
        """
        self.prepare_text()
        if not isinstance(self._encoded, TextEmbeddings):
            raise TypeError(f'{type(self).__name__} encodes words as {type(self._encoded).__name__}')
        return self._encoded

    def check_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        """Refuse class vectors of another encoder than those in use, where both are known.

        Raises:
            ValueError: names both encoders; or the model takes no class vectors at all.
        """
        if self._encoded is not None or self._text_source is not None:
            check_same_encoder(
                text_embeddings.encoder_fingerprint,
                self.text_embeddings.encoder_fingerprint,
                'the class vectors',
            )

    # --- sentences, for models with ``reads_sentences`` ---------------------------------------------------

    def find_phrases(self, caption: str) -> list[list[list[int]]]:
        """Find the noun phrases of a caption: a list of character ranges [start, end) for each."""
        raise ValueError(self._reads_words_only())

    def readable_phrases(self, caption: str, phrases: Sequence[list[list[int]]]) -> list[list[list[int]]]:
        """Select the phrases of a caption that the model can read."""
        raise ValueError(self._reads_words_only())

    def _reads_words_only(self) -> str:
        return (
            f'{type(self).__name__} takes lists of words; sentences are for models that read them, '
            'such as GLIP'
        )

    # --- background, for models that answer with pixels -----------------------------------------------------

    @property
    def with_background(self) -> bool:
        """Whether the model has a background of its own, beside the words."""
        return False

    @property
    def background_index(self) -> int | None:
        """The label of background in predictions; None when every pixel gets a word."""
        return None

    def set_background(self, use: bool) -> None:
        """Let pixels that no word describes be background, or give each of them its best word.

        Raises:
            ValueError: the model has no background of its own.
        """
        raise ValueError(
            f'{type(self).__name__} has no background of its own: every pixel gets a word; '
            "add one such as 'other' to the words"
        )

    # --- training and reports -------------------------------------------------------------------------------

    def check_training_classes(self, metainfo: Mapping[str, Any]) -> None:
        """Refuse training data that does not go with the vocabulary, before the first step.

        Args:
            metainfo: of the training data set.
        Raises:
            ValueError: names the class.
        """

    def describe(self) -> dict[str, Any]:
        """Describe what results depend on besides data and weights, for the protocol of a report.

        Here the templates and the text encoder; empty while no class vectors are in use.
        """
        current = self._encoded
        if not isinstance(current, TextEmbeddings):
            return {}
        names = (name for name, prompts in TEMPLATES.items() if prompts.templates == current.templates)
        return {
            'templates': next(names, list(current.templates)),
            'text_encoder': current.encoder_fingerprint or None,
        }

    @property
    def text_fingerprint(self) -> str | None:
        """The fingerprint of what encodes words, None where nothing does; opens the text encoder."""
        if self._text_source is None:
            return None
        try:
            return self._text_source.encoder.fingerprint
        except ValueError:  # finished vectors, without an encoder
            return None

    def _source(self) -> TextSource:
        if self._text_source is None:
            raise ValueError(
                'no vocabulary: set `model.text.vocabulary` in the config or call `set_vocabulary()`'
            )
        return self._text_source


def check_checkpoint(model: type[BaseModel], checkpoint: object) -> None:
    """Refuse a missing checkpoint, and one for a model that has no weights of its own.

    Raises:
        ValueError: says what to give or to leave out.
    """
    needed = not issubclass(model, OpenVocabularyModel) or model.needs_checkpoint
    if needed and checkpoint is None:
        raise ValueError(f'{model.__name__} needs a checkpoint, none was given')
    if not needed and checkpoint is not None:
        raise ValueError(
            f'{model.__name__} has no weights of its own, its config names those of its towers: leave out '
            f'the checkpoint {checkpoint}'
        )
