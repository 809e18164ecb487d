"""Words that compete with those that are asked for."""

from collections.abc import Sequence

from ...text.vocabulary import Vocabulary


def words_without(words: Vocabulary, vocabulary: Vocabulary) -> Vocabulary | None:
    """The words that are neither names nor synonyms of a vocabulary; None where none are left."""
    taken = {word.casefold() for group in vocabulary.synonyms for word in group}
    left: Sequence[str] = [name for name in words if name.casefold() not in taken]
    return Vocabulary(left) if left else None
