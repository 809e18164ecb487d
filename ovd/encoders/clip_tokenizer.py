"""CLIP's tokenizer with the characters of its tokens, whatever cleaning did to the text before.

Reading order: ClipTokenizer, align (characters of the cleaned text -> characters of the text).
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from open_clip.tokenizer import SimpleTokenizer

from ..text.phrases import Span

_WORD_END = '</w>'
_CAPACITY = 8192  # texts that are kept


class ClipText(NamedTuple):
    """A text as tokens, without special ones.

    Attributes:
        ids: of the tokens.
        offsets: per token, its characters [start, end) of the text as the user wrote it.
        owners: per token, the word it belongs to.
        words: as the tokenizer sees them, cleaned: runs of letters, of signs, and single digits.
    """

    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    owners: tuple[int, ...]
    words: tuple[str, ...]


class ClipTokenizer:
    """Reads texts as open_clip's ``SimpleTokenizer`` does; those read last are kept.

    Args:
        tokenizer: a ``SimpleTokenizer`` that neither drops punctuation nor picks tokens at random.
    Raises:
        ValueError: any other tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
            raise ValueError(
                f"features per token need CLIP's own tokenizer, which knows the characters of its tokens; "
                f'got {type(tokenizer).__name__}'
            )
        self.tokenizer = tokenizer
        self._special = {tokenizer.decoder[index] for index in tokenizer.all_special_ids}
        self._kept: OrderedDict[str, ClipText] = OrderedDict()

    def read(self, text: str) -> ClipText:
        """Tokens of a text of any length.

        Raises:
            ValueError: the text spells one of the special tokens.
        """
        found = self._kept.get(text)
        if found is None:
            found = self._kept[text] = self._read(text)
            if len(self._kept) > _CAPACITY:
                self._kept.popitem(last=False)
        return found

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(self.read(text).ids) for text in texts]

    def _read(self, text: str) -> ClipText:
        cleaned, origins = align(text, self.tokenizer.clean_fn)
        ids: list[int] = []
        offsets: list[Span] = []
        owners: list[int] = []
        words: list[str] = []
        for match in self.tokenizer.pat.finditer(cleaned):
            word = match.group()
            if word in self._special:
                raise ValueError(f"a text holds {word!r}, which is a token of CLIP's own: {text[:60]!r}")
            # A token may end within a character of several bytes, which then belongs to both sides.
            owner = [match.start() + index for index, char in enumerate(word) for _ in char.encode()]
            symbols = ''.join(self.tokenizer.byte_encoder[byte] for byte in word.encode())
            first = 0
            for piece in self.tokenizer.bpe(symbols).split(' '):
                last = first + len(piece.removesuffix(_WORD_END)) - 1
                ids.append(self.tokenizer.encoder[piece])
                offsets.append((origins[owner[first]][0], origins[owner[last]][1]))
                owners.append(len(words))
                first = last + 1
            words.append(word)
        return ClipText(tuple(ids), tuple(offsets), tuple(owners), tuple(words))


def align(text: str, clean: Callable[[str], str]) -> tuple[str, list[Span]]:
    """A cleaned text and, per character of it, the characters [start, end) of the text that it came from.

    What cleaning changes as a whole (an entity such as ``&amp;``, text that was decoded wrongly) stays
    together: each character of the result then stands for all of it.
    """
    whole = clean(text)
    parts = [(match.start(), match.end()) for match in re.finditer(r'\S+', text)]
    cleaned = [clean(text[start:end]) for start, end in parts]
    if ' '.join(filter(None, cleaned)) != whole:  # what is cleaned together has a blank in it
        parts, cleaned = [(0, len(text))], [whole]
    origins: list[Span] = []
    for (start, end), part in zip(parts, cleaned):
        if part:
            origins += [(start, start)] if origins else []  # the blank between two words
            origins += [
                (start + first, start + last) for first, last in _origins(text[start:end], part, clean)
            ]
    return whole, origins


def _origins(text: str, cleaned: str, clean: Callable[[str], str]) -> list[Span]:
    """The same for a part: cut wherever both sides can be cleaned by themselves."""
    lowered = [(char, index) for index, whole in enumerate(text) for char in whole.lower()]
    if ''.join(char for char, _ in lowered) == cleaned:
        return [(index, index + 1) for _, index in lowered]
    cuts = [(0, 0)]
    for cut in range(1, len(text)):
        before, after = clean(text[:cut]), clean(text[cut:])
        if cleaned in (before + after, f'{before} {after}') and len(before) >= cuts[-1][1]:
            cuts.append((cut, len(before)))
    cuts.append((len(text), len(cleaned)))
    origins: list[Span] = []
    for (start, first), (end, last) in pairwise(cuts):
        if end - start == last - first:
            origins += [(index, index + 1) for index in range(start, end)]
        else:
            origins += [(start, end)] * (last - first)
    return origins
