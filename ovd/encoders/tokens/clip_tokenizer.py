"""CLIP's tokenizer with the characters of its tokens in the original text, before it was cleaned.

Reading order: ClipTokenizer, ClipPromptTokenizer, align (characters of the cleaned text -> characters of the
original text).
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

from open_clip.tokenizer import SimpleTokenizer

from ...files import sha256_json
from ...text.phrases import Prompt, PromptPart, Span
from ...text.templates import PromptSet, Templates, expand, get_templates
from .token_encoder import PromptTokenizer

logger = logging.getLogger(__name__)

FEATURES = ('tokens', 'words', 'phrases')
_ARTICLES = ('a ', 'an ', 'the ')
_WORD_END = '</w>'
_CAPACITY = 8192  # texts in the cache


class ClipText(NamedTuple):
    """A text as tokens, without special ones.

    Attributes:
        ids: of the tokens.
        offsets: per token, its characters [start, end) of the text as the user wrote it.
        word_indices: per token, the index of its word.
        words: as the tokenizer sees them, cleaned: runs of letters, of signs, and single digits.
    """

    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    word_indices: tuple[int, ...]
    words: tuple[str, ...]


class ClipTokenizer:
    """Tokenizes texts as open_clip's ``SimpleTokenizer`` does; the latest ones are cached.

    Args:
        tokenizer: a ``SimpleTokenizer`` that neither drops punctuation nor picks tokens at random.
    Raises:
        ValueError: any other tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
            raise ValueError(f"features per token need CLIP's own tokenizer, got {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        self._special = {tokenizer.decoder[index] for index in tokenizer.all_special_ids}
        self._cache: OrderedDict[str, ClipText] = OrderedDict()

    def read(self, text: str) -> ClipText:
        """Tokens of a text of any length.

        Raises:
            ValueError: the text spells one of the special tokens.
        """
        found = self._cache.get(text)
        if found is None:
            found = self._cache[text] = self._read(text)
            if len(self._cache) > _CAPACITY:
                self._cache.popitem(last=False)
        return found

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(self.read(text).ids) for text in texts]

    def _read(self, text: str) -> ClipText:
        cleaned, origins = align(text, partial(_clean, self.tokenizer.clean_fn))
        ids: list[int] = []
        offsets: list[Span] = []
        word_indices: list[int] = []
        words: list[str] = []
        for match in self.tokenizer.pat.finditer(cleaned):
            word = match.group()
            if word in self._special:
                raise ValueError(f'a text contains the special token {word!r}: {text[:60]!r}')
            # A token may end within a character of several bytes, which then belongs to both sides.
            chars = [match.start() + index for index, char in enumerate(word) for _ in char.encode()]
            symbols = ''.join(self.tokenizer.byte_encoder[byte] for byte in word.encode())
            first = 0
            for piece in self.tokenizer.bpe(symbols).split(' '):
                last = first + len(piece.removesuffix(_WORD_END)) - 1
                ids.append(self.tokenizer.encoder[piece])
                offsets.append((origins[chars[first]][0], origins[chars[last]][1]))
                word_indices.append(len(words))
                first = last + 1
            words.append(word)
        return ClipText(tuple(ids), tuple(offsets), tuple(word_indices), tuple(words))


@lru_cache(maxsize=_CAPACITY)
def _clean(clean: Callable[[str], str], text: str) -> str:
    """Cached, since captions repeat their words and repairing text is slow."""
    return clean(text)


class ClipPromptTokenizer(PromptTokenizer):
    """Tokens of prompts for ``ClipTokens``, and the texts that it reads by themselves.

    Args:
        tokenizer: see ``ClipTokenizer``.
        context_length: of the text tower.
        features, templates, max_tokens: see ``ClipTokens``.
    Raises:
        ValueError: unknown ``features``, ``max_tokens`` beyond the context, or another tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_length: int,
        features: str = 'phrases',
        templates: Templates = 'a photo of {article} {}.',
        max_tokens: int | None = None,
    ) -> None:
        if features not in FEATURES:
            raise ValueError(f'features must be one of {list(FEATURES)}, got {features!r}')
        self.clip = ClipTokenizer(tokenizer)
        self.features = features
        self.templates: PromptSet = get_templates(templates)
        self.context_length = context_length
        self.max_tokens = max_tokens or (context_length if features == 'tokens' else 256)
        if features == 'tokens' and self.max_tokens > context_length:
            raise ValueError(
                f'max_tokens is {self.max_tokens}, the text tower has {context_length} positions'
            )
        self.first_id, self.last_id = tokenizer.sot_token_id, tokenizer.eot_token_id
        self.vocab_size = tokenizer.vocab_size
        self._has_warned = False

    @property
    def settings(self) -> list[Any]:
        """What the features depend on besides the weights."""
        return [self.features, self.max_tokens, self.templates.spelling, *self.templates.templates]

    @cached_property
    def fingerprint(self) -> str:
        return sha256_json([self.clip.tokenizer.encoder, self.context_length, self.settings])[:16]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.clip.count_tokens(texts)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.clip.read(text)
        return [self.first_id, *found.ids, self.last_id], [(0, 0), *found.offsets, (0, 0)]

    def _parts(self, prompt: Prompt, positions: Sequence[tuple[int, ...]]) -> tuple[PromptPart, ...]:
        """Phrases, each through all templates; and the words outside of them, bare for 'phrases'."""
        if self.features == 'tokens':
            return ()
        parts = []
        covered: set[int] = set()
        if self.features == 'phrases':
            for ranges, tokens in zip(prompt.spans, positions):
                text = _without_article(' '.join(prompt.text[start:end] for start, end in ranges))
                parts.append(PromptPart(tokens, self._texts(expand(text, self.templates))))
                covered.update(tokens)
        found = self.clip.read(prompt.text)
        for position, index in enumerate(found.word_indices, start=1):
            if position not in covered:
                word = found.words[index]
                texts = expand(word, self.templates) if self.features == 'words' else [word]
                parts.append(PromptPart((position,), self._texts(texts)))
        return tuple(parts)

    def _texts(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of texts, start and end included, cut to the context of the tower."""
        limit = self.context_length - 2
        rows = []
        for text in texts:
            ids = self.clip.read(text).ids
            if len(ids) > limit and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    'a phrase is cut to the %d tokens of the text encoder (logged once): %.80r',
                    self.context_length,
                    text,
                )
            rows.append((self.first_id, *ids[:limit], self.last_id))
        return tuple(rows)


def _without_article(phrase: str) -> str:
    article = next((word for word in _ARTICLES if phrase.lower().startswith(word)), '')
    return phrase[len(article) :]


def align(text: str, clean: Callable[[str], str]) -> tuple[str, list[Span]]:
    """Clean a text; return it and, per character, the range [start, end) of the original text.

    Runs that cleaning changes as a whole (an entity such as ``&amp;``, text that was decoded wrongly) are
    kept together: each character of the result then maps to the whole run.
    """
    whole = clean(text)
    parts = [(match.start(), match.end()) for match in re.finditer(r'\S+', text)]
    cleaned = [clean(text[start:end]) for start, end in parts]
    if ' '.join(filter(None, cleaned)) != whole:  # a run that is cleaned as a whole contains a blank
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
    """``align`` for a part without blanks: cut wherever both sides can be cleaned by themselves."""
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
