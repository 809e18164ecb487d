"""Sentences as questions to a model that reads them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..text.phrases import Prompt, caption_prompt, locate_phrases

if TYPE_CHECKING:
    from ..models.base import OpenVocabularyModel


def caption_question(
    model: 'OpenVocabularyModel', caption: str, phrases: Sequence[Any] | None = None
) -> Prompt:
    """A caption with its phrases, checked.

    Args:
        model: one with ``reads_sentences``, such as ``GLIP``.
        caption: a sentence of any length.
        phrases: what to look for. Each is words of the caption (given k times they are its first k places),
            or a list of character ranges [start, end). By default the noun phrases that the model finds, see
            ``text.nouns`` of its config.
    Raises:
        ValueError: a model that reads no sentences; a phrase that is not in the caption, or splits a word; a
            caption without phrases.
    """
    if not model.reads_sentences:
        raise ValueError(
            f'{type(model).__name__} is asked for lists of words; sentences are for models that read them, '
            f'such as GLIP'
        )
    if phrases is None:
        prompt = caption_prompt(caption, model.find_phrases(caption))
        if not len(prompt):
            raise ValueError(f'no noun was found in caption {caption!r}: say which phrases to look for')
        return prompt
    if isinstance(phrases, str) or not isinstance(phrases, Sequence) or not phrases:
        raise ValueError(
            f'expected a list of at least one phrase, got {phrases!r}; the whole sentence is '
            f'[[[0, {len(caption)}]]]'
        )
    places = iter(locate_phrases(caption, [phrase for phrase in phrases if isinstance(phrase, str)]))
    return caption_prompt(
        caption, [next(places) if isinstance(phrase, str) else phrase for phrase in phrases]
    )
