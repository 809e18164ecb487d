"""Nouns of a caption, as the words that prompts and phrases are made of.

Reading order: NounExtractor, then the taggers (spaCy, NLTK) and the built-in matcher of a vocabulary's names.
Nothing is downloaded: a tagger is used only where its package and its data are installed.
"""

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from .phrases import splits_word
from .vocabulary import Vocabulary, VocabularySpec

logger = logging.getLogger(__name__)

# What GroupViT calls nouns: common and proper nouns, and verbs in all forms.
# Source: Xu et al., CVPR 2022, released data pipeline; Penn Treebank tags.
GROUPVIT_TAGS = ('NN', 'NNS', 'NNP', 'VB', 'VBD', 'VBG', 'VBN', 'VBP', 'VBZ')
BACKENDS = ('spacy', 'nltk', 'vocabulary')
_BUILT_IN = 'lvis'  # names of 1,203 everyday things


class Noun(NamedTuple):
    """A word or phrase of a caption.

    Attributes:
        text: as the caption spells it.
        start, end: character positions; ``caption[start:end] == text``.
        label: index in the vocabulary; None where a tagger found it.
    """

    text: str
    start: int
    end: int
    label: int | None = None


class Token(NamedTuple):
    """A word with its Penn Treebank tag and character positions."""

    tag: str
    start: int
    end: int


Tagger = Callable[[str], list[Token]]


class NounExtractor:
    """Finds the nouns of a caption, in their order, repeated ones each time.

    Args:
        backend: 'spacy', 'nltk', 'vocabulary' (names, synonyms and plurals of ``vocabulary``), or 'auto': the
            first of these that is installed with its data, which is logged once.
        vocabulary: anything :meth:`Vocabulary.parse` takes; needed by 'vocabulary' only. Where 'auto' finds
            no tagger and was given none, it is 'lvis', whose names are built in.
        tags: Penn Treebank tags of the words to keep. Ignored by 'vocabulary'.
        phrases: give noun phrases instead of words. Of a tagger: adjectives and nouns that end in a noun, and
            two such joined by a preposition ('red fire truck', 'bowl of fruit'). Of 'vocabulary': a name and
            the words right before it ('striped red star'), see ``widen_nouns``.
        spacy_model: an installed English pipeline of spaCy.
    Raises:
        ValueError: an unknown backend, no tags, or no vocabulary where it is needed.
        ImportError: the named tagger, or its data, is not installed.
    """

    def __init__(
        self,
        backend: str = 'auto',
        vocabulary: 'VocabularySpec | None' = None,
        tags: Sequence[str] = GROUPVIT_TAGS,
        phrases: bool = False,
        spacy_model: str = 'en_core_web_sm',
    ) -> None:
        if backend not in ('auto', *BACKENDS):
            raise ValueError(f'backend of nouns must be one of {("auto", *BACKENDS)}, got {backend!r}')
        if isinstance(tags, str) or not tags:
            raise ValueError(f'tags must be a list of Penn Treebank tags, got {tags!r}')
        self.tags = frozenset(tags)
        self.phrases = phrases
        if backend == 'vocabulary' and vocabulary is None:
            raise ValueError("backend='vocabulary' needs a vocabulary: 'coco', 'lvis', a list of names ...")
        self.backend, self._tag = self._choose(backend, spacy_model)
        self._names: NameMatcher | None = None
        if self.backend == 'vocabulary':
            names = _BUILT_IN if vocabulary is None else vocabulary
            self._names = NameMatcher(Vocabulary.parse(names))
            if backend == 'auto':
                what = f'the built-in vocabulary {_BUILT_IN!r}' if vocabulary is None else 'the vocabulary'
                _say_once(
                    f'nouns of captions are the names of {what}: neither spaCy nor NLTK is installed with '
                    'its English data'
                )

    def extract(self, caption: str) -> list[Noun]:
        """The nouns (or noun phrases) of a caption by position; none in an empty one."""
        if self._names is not None:
            found = self._names.find(caption)
            return widen_nouns(caption, found) if self.phrases else found
        assert self._tag is not None
        tokens = self._tag(caption)
        if self.phrases:
            spans = _whole_words(caption, _phrase_spans(tokens))
        else:
            spans = [(token.start, token.end) for token in tokens if token.tag in self.tags]
        return [Noun(caption[start:end], start, end) for start, end in spans]

    def key(self, noun: Noun) -> str:
        """What is equal for equal nouns: the class in the vocabulary, else the noun in small letters."""
        if self._names is not None and noun.label is not None:
            return self._names.vocabulary.names[noun.label]
        return noun.text.casefold()

    def _choose(self, backend: str, spacy_model: str) -> tuple[str, Tagger | None]:
        """The backend taken, and its tagger."""
        taggers: dict[str, Callable[[], Tagger]] = {
            'spacy': partial(_load_spacy, spacy_model),
            'nltk': _load_nltk,
        }
        if backend in taggers:
            return backend, taggers[backend]()
        if backend == 'vocabulary':
            return backend, None
        for name, load in taggers.items():
            try:
                tag = load()
            except ImportError:
                continue
            _say_once(f'nouns of captions are found by {name}')
            return name, tag
        return 'vocabulary', None


@lru_cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _load_spacy(model: str) -> Tagger:
    if importlib.util.find_spec('spacy') is None:
        raise ImportError("backend='spacy' needs the package spacy: pip install spacy")
    spacy: Any = importlib.import_module('spacy')
    if not spacy.util.is_package(model):
        raise ImportError(f"backend='spacy' needs the English pipeline {model!r}, which is not installed")
    pipeline = spacy.load(model, exclude=['parser', 'ner', 'lemmatizer'])

    def tag(caption: str) -> list[Token]:
        return [Token(word.tag_, word.idx, word.idx + len(word.text)) for word in pipeline(caption)]

    return tag


def _load_nltk() -> Tagger:
    if importlib.util.find_spec('nltk') is None:
        raise ImportError("backend='nltk' needs the package nltk: pip install nltk")
    nltk: Any = importlib.import_module('nltk')

    def tag(caption: str) -> list[Token]:
        return _align(nltk.pos_tag(nltk.word_tokenize(caption)), caption)

    try:
        tag('a')
    except LookupError:  # NLTK's own message is a page on downloading
        raise ImportError(
            "backend='nltk' needs NLTK's data 'punkt_tab' and 'averaged_perceptron_tagger_eng' in one of its "
            'folders'
        ) from None
    return tag


def _align(tagged: Sequence[tuple[str, str]], caption: str) -> list[Token]:
    """Positions of NLTK's words; a word that it rewrote (a quotation mark) gets no extent."""
    tokens, position = [], 0
    for word, tag in tagged:
        start = caption.find(word, position)
        if start < 0:
            tokens.append(Token('', position, position))
            continue
        position = start + len(word)
        tokens.append(Token(tag, start, position))
    return tokens


_PHRASE = re.compile('[JN]*N(?:I[JN]*N)?')
_KINDS = {'JJ': 'J', 'NN': 'N', 'IN': 'I'}


def _phrase_spans(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """Character positions of the noun phrases, a final one included."""
    kinds = ''.join(_KINDS.get(token.tag[:2], ' ') for token in tokens)
    return [(tokens[m.start()].start, tokens[m.end() - 1].end) for m in _PHRASE.finditer(kinds)]


def _whole_words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that a tagger cut out of words ("km" of "5km"), widened to the words; each word once."""
    widened: list[tuple[int, int]] = []
    for start, end in spans:
        while splits_word(text, start):
            start -= 1
        while splits_word(text, end):
            end += 1
        if not widened or start >= widened[-1][1]:
            widened.append((start, end))
    return widened


# Words that end a phrase to the left: what stands before a noun and is none of these says how it looks.
_FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every no another other both all several many few one
    two three four five six seven eight nine ten and or but nor of in on at by with without near above
    below under over beside beneath behind between among around across against along through into onto
    from to off up down out inside outside past toward towards as than like for about is are was were be
    been has have had do does did can will there here it its his her their my your our i he she we you
    they them who which what not very while when where s t
    """.split()  # noqa: SIM905  (a list of strings would be three times as long)
)


def widen_nouns(caption: str, nouns: Sequence[Noun]) -> list[Noun]:
    """Nouns with the words right before each that say how it looks.

    They reach back to an article, a preposition or another function word, a word in '-ing' (a verb more often
    than not), a sign, or the noun before: 'a small red star' -> 'small red star'. Other verbs are not known.

    Args:
        nouns: of ``caption``, by position, without overlaps.
    """
    widened, limit = [], 0
    for noun in nouns:
        start = noun.start
        for word in reversed(list(_WORD.finditer(caption, limit, noun.start))):
            lowered = word[0].casefold()
            is_apart = caption[word.end() : start].strip(_JOINTS)
            if is_apart or lowered in _FUNCTION_WORDS or lowered.endswith('ing'):
                break
            start = word.start()
        widened.append(Noun(caption[start : noun.end], start, noun.end, noun.label))
        limit = noun.end
    return widened


class NameMatcher:
    """Finds the names of a vocabulary in texts: longest match from the left, whole words, any case.

    Synonyms and plurals count as their class. Blanks, hyphens and underscores between the words of a name are
    the same; a comment in parentheses ('crane_(bird)') is no part of it. Where two classes have one spelling,
    a name beats a synonym, a spelling as given beats a plural, and then the earlier class wins.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._labels: dict[tuple[str, ...], int] = {}
        names = list(enumerate(vocabulary.names))
        synonyms = [(label, text) for label, group in enumerate(vocabulary.synonyms) for text in group]
        for entries in (names, synonyms):
            for label, text in entries:
                for words in _spellings(text):
                    self._labels.setdefault(words, label)
            for label, text in entries:
                for *first, last in _spellings(text):
                    for form in _other_numbers(last):
                        self._labels.setdefault((*first, form), label)
        self._longest: dict[str, int] = {}
        for words in self._labels:
            self._longest[words[0]] = max(len(words), self._longest.get(words[0], 0))

    def find(self, text: str) -> list[Noun]:
        """The names in ``text`` with their labels; they do not overlap."""
        words = [(match[0].casefold(), *match.span()) for match in _WORD.finditer(text)]
        found, position = [], 0
        while position < len(words):
            count, label = self._match(words, position, text)
            if count:
                start, end = words[position][1], words[position + count - 1][2]
                found.append(Noun(text[start:end], start, end, label))
            position += max(count, 1)
        return found

    def _match(self, words: Sequence[tuple[str, int, int]], position: int, text: str) -> tuple[int, int]:
        """How many words from ``position`` on are a name, and whose; (0, -1) if none are."""
        longest = self._longest.get(words[position][0], 0)
        reach = 1
        while reach < min(longest, len(words) - position):
            gap = text[words[position + reach - 1][2] : words[position + reach][1]]
            if gap.strip(_JOINTS):
                break
            reach += 1
        for count in range(min(reach, longest), 0, -1):
            label = self._labels.get(tuple(word for word, _, _ in words[position : position + count]))
            if label is not None:
                return count, label
        return 0, -1


_WORD = re.compile(r"[^\W_]+(?:['’](?!s\b)[^\W_]+)*")
_JOINTS = ' \t\n-_'
_COMMENT = re.compile(r'\([^()]*\)')


def _spellings(name: str) -> Iterator[tuple[str, ...]]:
    """Words of a name, and of each side of a name such as 'handbag/purse'."""
    for part in _COMMENT.sub(' ', name).split('/'):
        words = tuple(match[0].casefold() for match in _WORD.finditer(part))
        if words:
            yield words


# Endings of words with plurals of their own: woman, fireman, salesperson.
_IRREGULAR = {
    **{'man': 'men', 'person': 'people', 'child': 'children', 'foot': 'feet', 'tooth': 'teeth'},
    **{'goose': 'geese', 'mouse': 'mice'},
}
_SINGULARS = {plural: singular for singular, plural in _IRREGULAR.items()}


def _other_numbers(word: str) -> list[str]:
    """Plurals of a word, and the singular of what looks like a plural; what is no word matches nothing."""
    if word in _SINGULARS:
        return [_SINGULARS[word]]
    forms = [
        word.removesuffix(ending) + plural for ending, plural in _IRREGULAR.items() if word.endswith(ending)
    ]
    forms.append(word + 's')
    if word.endswith(('s', 'x', 'z', 'ch', 'sh', 'o')):
        forms.append(word + 'es')
    if re.search('[^aeiou]y$', word):
        forms.append(word[:-1] + 'ies')
    if word.endswith(('f', 'fe')):
        forms.append(word.removesuffix('e').removesuffix('f') + 'ves')
    if len(word) > 3 and word.endswith('s') and not word.endswith('ss'):
        forms.append(word[:-1])
    return forms
