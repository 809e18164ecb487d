"""Prompts: a text, the entities that it names, and the characters and tokens of each.

Reading order: Prompt and what makes one (word_name, class_prompt, caption_prompt, locate_phrases),
token_positions and positive_map (characters -> tokens), split_names and split_caption (texts longer than the
limit of the text encoder).
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Span = tuple[int, int]
Wordings = Mapping[str, Mapping[str, str]]

SEPARATOR = '. '
_WORDING = ('prefix', 'name', 'suffix')
_COMMENT = re.compile(r'\([^()]*\)')
_NO_BLANKS = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')  # Thai, Lao, Burmese, Khmer


class PromptPart(NamedTuple):
    """Texts that an encoder reads by themselves, as token ids, and the tokens that get their mean vector."""

    positions: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Prompt:
    """A text and the C entities that it names.

    The tokens are filled in once, by the tokenizer of an encoder (``PromptTokenizer.tokenize``); they follow
    from the text, so prompts are compared without them.

    Attributes:
        text: input of the text encoder.
        spans: per entity, its character ranges [start, end) of the text; several if it is interrupted.
        names: per entity, its name as the user wrote it.
        labels: per entity, its index in the user's list.
        start: index of the first character in the longer text of which this is a window.
        token_ids: L tokens, special ones included; empty before tokenization.
        offsets: per token, its characters [start, end) of the text; (0, 0) for special tokens.
        positions: per entity, the indices of its tokens.
        parts: texts that are encoded by themselves, for encoders that read words or phrases one by one.
    """

    text: str
    spans: tuple[tuple[Span, ...], ...]
    names: tuple[str, ...]
    labels: tuple[int, ...]
    start: int = 0
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    offsets: tuple[Span, ...] = field(default=(), compare=False, repr=False)
    positions: tuple[tuple[int, ...], ...] = field(default=(), compare=False, repr=False)
    parts: tuple[PromptPart, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.spans)

    def window(self, start: int, end: int, entities: Sequence[int]) -> 'Prompt':
        """Characters [start, end) of the text, with the parts of the given entities inside them."""
        return Prompt(
            self.text[start:end],
            tuple(
                tuple(
                    (max(b, start) - start, min(e, end) - start) for b, e in ranges if b < end and e > start
                )
                for ranges in (self.spans[entity] for entity in entities)
            ),
            tuple(self.names[entity] for entity in entities),
            tuple(self.labels[entity] for entity in entities),
            self.start + start,
        )


def clean_name(name: str) -> str:
    """Spell a class name as in a prompt: no comment in parentheses, single blanks, no underscores.

    Raises:
        ValueError: not a string, or nothing is left of it.

    Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022 (released code), which leaves blanks
        that tokenizers ignore.
    """
    cleaned = ' '.join(_COMMENT.sub(' ', name).replace('_', ' ').split()) if isinstance(name, str) else ''
    if not cleaned:
        raise ValueError(f'class name {name!r:.60} is not a text with words outside of parentheses')
    return cleaned


def word_name(name: str, wording: Mapping[str, str] | None = None) -> tuple[str, Span]:
    """Word a class name for a prompt; return the wording and the characters [start, end) of the class in it.

    Args:
        wording: 'name', used instead of the class name, and 'prefix' and 'suffix' around it, all optional:
            the suffix 'of a person' turns 'hand' into 'hand of a person', of which 'hand' is the class.
    Raises:
        ValueError: a name without words, see ``clean_name``; another key, or a value that is not a string.

    Source: the overrides of prompts in the released code of Li et al., CVPR 2022.
    """
    wording = wording or {}
    wrong = [key for key, part in wording.items() if key not in _WORDING or not isinstance(part, str)]
    if wrong:
        raise ValueError(
            f'wording of class {name!r}: expected strings for some of {list(_WORDING)}, '
            f'got {wrong[0]!r}: {wording[wrong[0]]!r}'
        )
    cleaned = clean_name(wording.get('name', name))
    prefix, suffix = (re.sub(r'\s+', ' ', wording.get(key, '')) for key in ('prefix', 'suffix'))
    prefix, suffix = prefix.lstrip(), suffix.rstrip()
    if splits_word(prefix + cleaned, len(prefix)):
        prefix += ' '
    if splits_word(cleaned + suffix, len(cleaned)):
        suffix = ' ' + suffix
    return prefix + cleaned + suffix, (len(prefix), len(prefix) + len(cleaned))


def check_wordings(wordings: Wordings, names: Iterable[str]) -> None:
    """Raise ValueError for wordings of unknown classes, and for those that ``word_name`` cannot use."""
    unknown = set(wordings).difference(names)
    if unknown:
        raise ValueError(f'wordings of unknown classes: {", ".join(map(repr, sorted(unknown)))}')
    for name, wording in wordings.items():
        word_name(name, wording)


def class_prompt(
    names: Sequence[str],
    labels: Sequence[int] | None = None,
    final: str = '',
    wordings: Wordings | None = None,
) -> Prompt:
    """Join class names into one prompt, 'person. traffic light. cup'.

    Args:
        names: any class names; each is cleaned first, see ``clean_name``.
        labels: their indices in the user's list, by default 0 .. N - 1.
        final: appended after the last name.
        wordings: of some of the names, see ``word_name``.
    """
    spelled, spans, start = [], [], 0
    for name in names:
        words, (first, last) = word_name(name, (wordings or {}).get(name))
        spelled.append(words)
        spans.append(((start + first, start + last),))
        start += len(words) + len(SEPARATOR)
    chosen = tuple(range(len(names)) if labels is None else labels)
    return Prompt(SEPARATOR.join(spelled) + final, tuple(spans), tuple(names), chosen)


def caption_prompt(caption: str, spans: Any) -> Prompt:
    """Make the prompt of a caption from the characters of its phrases.

    Args:
        caption: a sentence; a full stop is added where it has none.
        spans: per phrase, a list of [start, end) in characters of the caption, or a mapping from label to
            such a list. Labels of a list are 0 .. N - 1.
    Raises:
        ValueError: not such ranges; one that is empty or blank, lies outside the caption or splits a word.

    Source: the full stop: Li et al., CVPR 2022, as the mmdet port asks for phrases.
    """
    if not isinstance(spans, (Mapping, Sequence)):
        raise ValueError(f'tokens_positive of caption {_short(caption)}: got {spans!r}, {_expected(caption)}')
    labelled = dict(spans) if isinstance(spans, Mapping) else dict(enumerate(spans))
    checked = [_checked_ranges(caption, label, ranges) for label, ranges in labelled.items()]
    names = tuple(' / '.join(caption[start:end] for start, end in ranges) for ranges in checked)
    text = caption if caption.rstrip().endswith('.') else caption + SEPARATOR
    return Prompt(text, tuple(checked), names, tuple(int(label) for label in labelled))


def locate_phrases(caption: str, phrases: Sequence[str]) -> list[list[list[int]]]:
    """Find the character ranges of phrases that are given as text: whole words, any case.

    A phrase that is given k times gets its first k occurrences, one each.

    Raises:
        ValueError: a blank phrase, or one that does not occur in the caption (often enough).
    """
    used: dict[str, int] = {}
    found = []
    for phrase in phrases:
        pattern = re.compile(re.escape(phrase.strip()) or r'(?!)', re.IGNORECASE)
        match = pattern.search(caption, used.get(phrase, 0))
        while match and (splits_word(caption, match.start()) or splits_word(caption, match.end())):
            match = pattern.search(caption, match.start() + 1)
        if match is None:
            again = 'again ' if phrase in used else ''
            raise ValueError(f'phrase {phrase!r} is not found {again}in caption {_short(caption)}')
        used[phrase] = match.end()
        found.append([[match.start(), match.end()]])
    return found


def splits_word(text: str, position: int) -> bool:
    """Whether a cut before character ``position`` splits a word, or separates a letter from its marks.

    Scripts that write no blanks between words, such as Chinese and Thai, can be cut between any two letters.
    """
    if not 0 < position < len(text):
        return False
    if _is_mark(text[position]):
        return not text[position - 1].isspace()
    before = position - 1
    while before and _is_mark(text[before]):
        before -= 1
    return _ends_at_blanks(text[before]) and _ends_at_blanks(text[position])


def _is_mark(char: str) -> bool:
    """Whether a character is drawn onto the letter before it."""
    return unicodedata.category(char)[0] == 'M'


def _ends_at_blanks(char: str) -> bool:
    """Whether a character belongs to a script whose words are separated by blanks."""
    is_wide = unicodedata.east_asian_width(char) in 'WFH'
    return char.isalnum() and not is_wide and not _NO_BLANKS.match(char)


def token_positions(ranges: Iterable[Sequence[int]], offsets: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that share a character with the ranges.

    Args:
        ranges: [start, end) in characters.
        offsets: per token, its characters [start, end); empty for special tokens.
    """
    pairs = [(start, end) for start, end in ranges if end > start]
    return [
        index
        for index, (first, last) in enumerate(offsets)
        if last > first and any(first < end and last > start for start, end in pairs)
    ]


def positive_map(prompt: Prompt, offsets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token positions of every entity, C lists.

    Args:
        offsets: per token, its characters [start, end).
    Raises:
        ValueError: an entity without tokens, because the tokenizer drops its characters or the text was cut.
    """
    return [_entity_tokens(prompt, entity, offsets) for entity in range(len(prompt))]


def _entity_tokens(prompt: Prompt, entity: int, offsets: Sequence[Sequence[int]]) -> list[int]:
    positions = token_positions(prompt.spans[entity], offsets)
    if not positions:
        raise ValueError(f'phrase {prompt.names[entity]!r} has no tokens in {_short(prompt.text)}')
    return positions


def split_names(
    token_counts: Sequence[int], max_tokens: int, per_prompt: int | None = None, special_tokens: int = 2
) -> list[range]:
    """Cut a list of names into consecutive prompts that fit the text encoder.

    Uses the fewest prompts and, among these cuts, one whose longest prompt is shortest. A name that does not
    fit the limit gets a prompt of its own.

    Args:
        token_counts: tokens of each name; a separator token stands between two names.
        max_tokens: limit of a prompt, ``special_tokens`` at its ends included.
        per_prompt: cut after this many names instead, as published evaluations do; prompts that are still too
            long are cut again.
    """
    budget = max_tokens - special_tokens
    if per_prompt is not None:
        return [
            range(start + part.start, start + part.stop)
            for start in range(0, len(token_counts), per_prompt)
            for part in split_names(
                token_counts[start : start + per_prompt], max_tokens, None, special_tokens
            )
        ]
    fewest = len(_fill(token_counts, budget))
    low, high = max(token_counts, default=0), budget
    while low < high:
        middle = (low + high) // 2
        if len(_fill(token_counts, middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return _fill(token_counts, high)


def split_caption(
    prompt: Prompt, offsets: Sequence[Sequence[int]], max_tokens: int, special_tokens: int = 2
) -> list[Prompt]:
    """Cut a text into overlapping windows that fit the text encoder; each entity lies in one, uncut.

    Each window is centred on the first phrase that is not yet covered. A text without entities is cut into
    consecutive windows.

    Args:
        offsets: per token, its characters [start, end) of the whole text.
        max_tokens: limit of a window, ``special_tokens`` at its ends included.
    Raises:
        ValueError: a phrase that is longer than a window, or has no tokens.
    """
    words = [(start, end) for start, end in offsets if end > start]
    budget = max_tokens - special_tokens
    if len(words) <= budget:
        return [prompt]
    if not len(prompt):
        return _consecutive(prompt, words, budget)
    extents = [_extent(words, prompt, entity, budget) for entity in range(len(prompt))]
    left = sorted(range(len(prompt)), key=lambda entity: extents[entity])
    windows = []
    while left:
        begin, until = extents[left[0]]
        spare = budget - (until - begin)
        first = _word_start(prompt.text, words, max(0, begin - spare // 2), begin)
        last = _word_end(prompt.text, words, min(len(words), first + budget), until)
        inside = [entity for entity in left if first <= extents[entity][0] and extents[entity][1] <= last]
        windows.append(prompt.window(words[first][0], words[last - 1][1], inside))
        left = [entity for entity in left if entity not in inside]
    return windows


def _consecutive(prompt: Prompt, words: Sequence[Sequence[int]], budget: int) -> list[Prompt]:
    """Windows of a text without entities, one after the other."""
    windows, first = [], 0
    while first < len(words):
        last = _word_end(prompt.text, words, min(len(words), first + budget), first + 1)
        windows.append(prompt.window(words[first][0], words[last - 1][1], []))
        first = last
    return windows


def _fill(token_counts: Sequence[int], budget: int) -> list[range]:
    """Prompts of at most ``budget`` tokens, each as long as possible."""
    prompts, start, length = [], 0, 0
    for index, count in enumerate(token_counts):
        if index > start and length + 1 + count > budget:
            prompts.append(range(start, index))
            start, length = index, 0
        length += count + (index > start)
    return [*prompts, range(start, len(token_counts))] if len(token_counts) else []


def _extent(words: Sequence[Sequence[int]], prompt: Prompt, entity: int, budget: int) -> tuple[int, int]:
    """Position of the first token of an entity, and one past its last."""
    inside = _entity_tokens(prompt, entity, words)
    begin, until = inside[0], inside[-1] + 1
    if until - begin > budget:
        raise ValueError(
            f'phrase {prompt.names[entity]!r} has {until - begin} tokens, the limit of a prompt is {budget}'
        )
    return begin, until


def _word_start(text: str, words: Sequence[Sequence[int]], first: int, limit: int) -> int:
    """The first token from ``first`` on that begins a word, ``limit`` at the latest."""
    while first < limit and splits_word(text, words[first][0]):
        first += 1
    return first


def _word_end(text: str, words: Sequence[Sequence[int]], last: int, limit: int) -> int:
    """The last token count up to ``last`` that ends a word, ``limit`` at the earliest."""
    while last > limit and splits_word(text, words[last - 1][1]):
        last -= 1
    return last


def _checked_ranges(caption: str, label: Any, ranges: Any) -> tuple[Span, ...]:
    where = f'phrase {label} of caption {_short(caption)}'
    try:
        checked = tuple((start, end) for start, end in ranges if isinstance(start + end, int))
    except (TypeError, ValueError):
        checked = ()
    if not checked or len(checked) < len(ranges):
        raise ValueError(f'{where}: got {ranges!r}, {_expected(caption)}')
    for start, end in checked:
        reason = ''
        if not 0 <= start < end <= len(caption):
            reason = f'is not in the caption of {len(caption)} characters'
        elif not caption[start:end].strip():
            reason = 'is blank'
        elif splits_word(caption, start) or splits_word(caption, end):
            reason = f'{caption[start:end]!r} splits a word'
        if reason:
            raise ValueError(f'{where}: [{start}, {end}) {reason}')
    return checked


def _expected(caption: str) -> str:
    return f'expected a list of [start, end) per phrase; the whole caption is [[0, {len(caption)}]]'


def _short(text: str) -> str:
    return f'{text[:60]!r}' + (' ...' if len(text) > 60 else '')
