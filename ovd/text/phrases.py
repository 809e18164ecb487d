"""Phrases of a text: what it names, as characters and as tokens, and how long texts are cut into prompts.

Reading order: Prompt and its makers (word_name, class_prompt, caption_prompt, locate_phrases),
token_positions and positive_map (characters -> tokens), split_names and split_caption (the limit of the text
encoder).
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]
Wordings = Mapping[str, Mapping[str, str]]

SEPARATOR = '. '
_WORDING = ('prefix', 'name', 'suffix')
_COMMENT = re.compile(r'\([^()]*\)')
_NO_BLANKS = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')  # Thai, Lao, Burmese, Khmer


@dataclass(frozen=True)
class Prompt:
    """A text and the entities that it names.

    Attributes:
        text: what the text encoder reads.
        spans: per entity, its character ranges [start, end) of the text; several when it is interrupted.
        names: per entity, the user's own words for it.
        labels: per entity, its place in the user's list.
        start: where a longer text, which this is a window of, has the first character of this one.
    """

    text: str
    spans: tuple[tuple[Span, ...], ...]
    names: tuple[str, ...]
    labels: tuple[int, ...]
    start: int = 0

    def __post_init__(self) -> None:
        if not len(self.spans) == len(self.names) == len(self.labels):
            raise ValueError(
                f'{len(self.spans)} spans came with {len(self.names)} names and {len(self.labels)} labels'
            )

    def __len__(self) -> int:
        return len(self.spans)

    def window(self, start: int, end: int, entities: Sequence[int]) -> 'Prompt':
        """Characters [start, end) of the text with what lies there of some of its entities."""
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
    """A class name as a prompt spells it: no comment in parentheses, blanks for underscores, single blanks.

    Raises:
        ValueError: nothing is left, or what is given is no text.

    Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022 (released code), which leaves blanks
        that tokenizers ignore.
    """
    if not isinstance(name, str):
        raise ValueError(f'expected a text as class name, got {name!r:.60}')
    cleaned = ' '.join(_COMMENT.sub(' ', name).replace('_', ' ').split())
    if not cleaned:
        raise ValueError(f'class name {name!r} has no words left without its comment')
    return cleaned


def word_name(name: str, wording: Mapping[str, str] | None = None) -> tuple[str, Span]:
    """A class name as its sentence spells it, and the characters [start, end) that stand for the class.

    Args:
        wording: 'name', said instead of the class name, and 'prefix' and 'suffix' around it, all optional:
            the suffix 'of a person' turns 'hand' into 'hand of a person', of which 'hand' is the class.
    Raises:
        ValueError: a name without words, see ``clean_name``; another key, or a part that is no text.

    Source: the overrides of prompts in the released code of Li et al., CVPR 2022.
    """
    wording = wording or {}
    wrong = [key for key, part in wording.items() if key not in _WORDING or not isinstance(part, str)]
    if wrong:
        raise ValueError(
            f'wording of class {name!r}: expected texts for some of {list(_WORDING)}, '
            f'got {wrong[0]!r}: {wording[wrong[0]]!r}'
        )
    said = clean_name(wording.get('name', name))
    prefix, suffix = (re.sub(r'\s+', ' ', wording.get(key, '')) for key in ('prefix', 'suffix'))
    prefix, suffix = prefix.lstrip(), suffix.rstrip()
    if splits_word(prefix + said, len(prefix)):
        prefix += ' '
    if splits_word(said + suffix, len(said)):
        suffix = ' ' + suffix
    return prefix + said + suffix, (len(prefix), len(prefix) + len(said))


def check_wordings(wordings: Wordings, names: Iterable[str]) -> None:
    """Refuse (ValueError) wordings of classes that are not there, and what ``word_name`` cannot read."""
    known = set(names)
    for name, wording in wordings.items():
        if name not in known:
            raise ValueError(
                f'a wording is given for {name!r}, which is none of the {len(known)} class names'
            )
        word_name(name, wording)


def class_prompt(
    names: Sequence[str],
    labels: Sequence[int] | None = None,
    final: str = '',
    wordings: Wordings | None = None,
) -> Prompt:
    """Class names in one sentence, 'person. traffic light. cup'.

    Args:
        names: any class names; each is cleaned first, see ``clean_name``.
        labels: their places in the user's list, by default 0 .. N - 1.
        final: what ends the sentence.
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
    """A caption and the characters of its phrases.

    Args:
        caption: a sentence; a full stop is added where it has none.
        spans: per phrase, a list of [start, end) in characters of the caption, or a mapping from label to
            such a list. Labels of a list are 0 .. N - 1.
    Raises:
        ValueError: a range that is empty, lies outside the caption, holds no word or splits one; -1.

    Source: the full stop: Li et al., CVPR 2022, as the mmdet port asks for phrases.
    """
    if spans == -1:
        raise ValueError(
            f'tokens_positive is -1 for caption {_short(caption)}: give the whole sentence as '
            f'[[[0, {len(caption)}]]]'
        )
    labelled = dict(spans) if isinstance(spans, Mapping) else dict(enumerate(spans))
    checked = [_checked_ranges(caption, label, ranges) for label, ranges in labelled.items()]
    names = tuple(' / '.join(caption[start:end] for start, end in ranges) for ranges in checked)
    text = caption if caption.rstrip().endswith('.') else caption + SEPARATOR
    return Prompt(text, tuple(checked), names, tuple(int(label) for label in labelled))


def locate_phrases(caption: str, phrases: Sequence[str]) -> list[list[list[int]]]:
    """Character ranges of phrases that are known by their words only: whole words, any case.

    A phrase that is given k times gets its first k places, one each.

    Raises:
        ValueError: a phrase that the caption does not hold, or not so often.
    """
    used: dict[str, int] = {}
    found = []
    for phrase in phrases:
        if not phrase.strip():
            raise ValueError(f'a phrase of caption {_short(caption)} has no words')
        pattern = re.compile(re.escape(phrase.strip()), re.IGNORECASE)
        start = used.get(phrase, 0)
        match = pattern.search(caption, start)
        while match and (splits_word(caption, match.start()) or splits_word(caption, match.end())):
            match = pattern.search(caption, match.start() + 1)
        if match is None:
            often = 'so often ' if phrase in used else ''
            raise ValueError(f'phrase {phrase!r} is not {often}in caption {_short(caption)}')
        used[phrase] = match.end()
        found.append([[match.start(), match.end()]])
    return found


def splits_word(text: str, position: int) -> bool:
    """Whether a cut before character ``position`` goes through a word, or parts a letter from its marks.

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
    """Whether a character belongs to words that blanks and signs tell apart."""
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
    """Tokens of every entity, N lists of indices.

    Raises:
        ValueError: an entity without tokens, because its characters mean nothing to the tokenizer or the
            text was cut.
    """
    positions = [token_positions(ranges, offsets) for ranges in prompt.spans]
    for name, tokens in zip(prompt.names, positions):
        if not tokens:
            raise ValueError(f'phrase {name!r} has no tokens in {_short(prompt.text)}')
    return positions


def split_names(
    token_counts: Sequence[int], max_tokens: int, per_prompt: int | None = None, special_tokens: int = 2
) -> list[range]:
    """Cut a list of names into consecutive prompts that fit the text encoder.

    The fewest prompts are taken, and of those cuts one whose longest prompt is shortest.

    Args:
        token_counts: tokens of each name; a separator token stands between two names.
        max_tokens: longest prompt, ``special_tokens`` at its ends included.
        per_prompt: cut after every so many names instead, as published evaluations do; prompts that are too
            long even so are cut again.
    Raises:
        ValueError: a name that does not fit a prompt of its own.
    """
    budget = max_tokens - special_tokens
    for index, count in enumerate(token_counts):
        if count > budget:
            raise ValueError(f'class {index} has {count} tokens, more than the {budget} of a prompt')
    if per_prompt is not None:
        if per_prompt < 1:
            raise ValueError(f'expected at least one name per prompt, got {per_prompt}')
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

    Windows lie around the first phrase that is not yet covered. A text without entities is cut into
    consecutive windows.

    Args:
        offsets: per token, its characters [start, end), of the whole text.
        max_tokens: longest window, ``special_tokens`` at its ends included.
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
    """The first token of an entity, and the one after its last; at most ``budget`` lie between."""
    inside = token_positions(prompt.spans[entity], words)
    if not inside:
        raise ValueError(f'phrase {prompt.names[entity]!r} has no tokens in {_short(prompt.text)}')
    begin, until = inside[0], inside[-1] + 1
    if until - begin > budget:
        raise ValueError(
            f'phrase {prompt.names[entity]!r} takes {until - begin} tokens, '
            f'more than the {budget} of a prompt'
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
    if isinstance(ranges, (str, bytes)) or not isinstance(ranges, Sequence) or not ranges:
        hint = f'; the whole caption is [[0, {len(caption)}]]' if ranges == -1 else ''
        raise ValueError(f'{where}: expected a list of [start, end), got {ranges!r}{hint}')
    checked = []
    for pair in ranges:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(end, int) for end in pair):
            raise ValueError(f'{where}: expected [start, end), got {pair!r}')
        start, end = pair
        if not 0 <= start < end <= len(caption):
            raise ValueError(
                f'{where}: characters [{start}, {end}) are not in the caption of {len(caption)} characters'
            )
        if not caption[start:end].strip():
            raise ValueError(f'{where}: characters [{start}, {end}) are blank')
        if splits_word(caption, start) or splits_word(caption, end):
            raise ValueError(f'{where}: {caption[start:end]!r} at [{start}, {end}) splits a word')
        checked.append((start, end))
    return tuple(checked)


def _short(text: str) -> str:
    return f'{text[:60]!r}' + (' ...' if len(text) > 60 else '')
