"""Nouns of captions: the built-in matcher, and spaCy and NLTK as far as they are installed."""

import importlib.machinery
import logging
import sys
import types
from typing import Any

import pytest

from ovd.text import nouns
from ovd.text.nouns import GROUPVIT_TAGS, Noun, NounExtractor
from ovd.text.phrases import caption_prompt

CAPTION = 'A woman walks two dogs past a red fire truck.'
# Penn Treebank tags of the words of CAPTION.
TAGS = {
    **{
        '"': '``',
        'A': 'DT',
        'a': 'DT',
        'woman': 'NN',
        'walks': 'VBZ',
        'two': 'CD',
        'dogs': 'NNS',
        'past': 'IN',
    },
    **{'red': 'JJ', 'fire': 'NN', 'truck': 'NN', '.': '.', '``': '``', "''": "''", 'bowl': 'NN'},
    **{'of': 'IN', 'fresh': 'JJ', 'fruit': 'NN'},
}


def words(found: list[Noun]) -> list[str]:
    return [noun.text for noun in found]


def matcher(vocabulary: Any) -> NounExtractor:
    return NounExtractor('vocabulary', vocabulary=vocabulary)


# --- the built-in matcher -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('vocabulary', 'caption', 'found'),
    [
        (['dog', 'hot dog'], 'A hot dog and a dog.', [('hot dog', 1), ('dog', 0)]),
        (['dog', 'hot dog'], 'Hot-Dogs! dogged hot. Dog', [('Hot-Dogs', 1), ('Dog', 0)]),
        (['cat'], 'concatenate category cat_cat', [('cat', 0), ('cat', 0)]),
        (
            [['person', 'man', 'woman']],
            'Men and women, one person',
            [('Men', 0), ('women', 0), ('person', 0)],
        ),
        (['man', ['person', 'man']], 'a man', [('man', 0)]),  # a name beats a synonym
        (['ski', 'skis'], 'skis, ski', [('skis', 1), ('ski', 0)]),  # as given beats a plural
        (['bus', 'knife', 'berry', 'toy'], 'buses knives berries toys', [0, 1, 2, 3]),
        (['crane_(bird)', 'handbag/purse'], 'two cranes and a purse', [('cranes', 0), ('purse', 1)]),
        (['stop sign', 'sign'], 'stop\tsigns', [('stop\tsigns', 0)]),
        (['dog'], "the dog's bowl", [('dog', 0)]),
        (['human', 'glass'], 'humans with glasses', [('humans', 0), ('glasses', 1)]),
        (['dog'], '', []),
        (['Äpfel'], 'zwei äpfel', [('äpfel', 0)]),
    ],
)
def test_names_are_found(vocabulary: Any, caption: str, found: list[Any]) -> None:
    nouns_found = matcher(vocabulary).extract(caption)
    if found and isinstance(found[0], int):
        assert [noun.label for noun in nouns_found] == found
    else:
        assert [(noun.text, noun.label) for noun in nouns_found] == found
    assert all(caption[noun.start : noun.end] == noun.text for noun in nouns_found)


def test_overlapping_names_take_the_longest_from_the_left() -> None:
    found = matcher(['fire', 'fire truck', 'truck driver', 'truck']).extract('fire truck driver, fire')
    assert words(found) == ['fire truck', 'fire']


def test_built_in_vocabularies_are_matched() -> None:
    assert words(matcher('coco').extract('Two TEDDY BEARS beside a traffic light')) == [
        'TEDDY BEARS',
        'traffic light',
    ]
    found = matcher('shapes').extract('a striped red star is left of a blue ring')
    assert words(found) == ['star', 'ring']
    assert words(matcher('lvis').extract('an alligator in the aquariums')) == ['alligator', 'aquariums']


def test_repeated_nouns_stay() -> None:
    assert [noun.start for noun in matcher(['dog']).extract('dog eats dog')] == [0, 9]


@pytest.mark.parametrize(
    ('caption', 'found'),
    [
        ('a striped red star above the big, blue ring', ['striped red star', 'blue ring']),
        ('Two stars left of a dark-green ring', ['stars', 'dark-green ring']),
        ("the star's red ring riding star ring", ['star', 'red ring', 'star', 'ring']),
        ('there is an orange star, which is red. ring', ['orange star', 'ring']),
        ('', []),
    ],
)
def test_names_take_the_words_before_them_along(caption: str, found: list[str]) -> None:
    extractor = NounExtractor('vocabulary', vocabulary=['star', 'ring'], phrases=True)
    phrases = extractor.extract(caption)
    assert words(phrases) == found
    assert all(caption[noun.start : noun.end] == noun.text for noun in phrases)
    assert {extractor.key(noun) for noun in phrases} <= {'star', 'ring'}


# --- taggers, with stand-ins for their packages -------------------------------------------------------------


class Word:
    def __init__(self, text: str, start: int) -> None:
        self.text, self.idx, self.tag_ = text, start, TAGS[text]


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Make ``import name`` give a module with this content."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def split(text: str) -> list[str]:
    return text.replace('"', ' " ').replace('.', ' .').split()


def install_spacy(monkeypatch: pytest.MonkeyPatch, has_model: bool = True) -> None:
    def load(model: str, **options: Any) -> Any:
        def pipeline(text: str) -> list[Word]:
            found, position = [], 0
            for word in split(text):
                position = text.index(word, position)
                found.append(Word(word, position))
            return found

        return pipeline

    install(monkeypatch, 'spacy', load=load, util=types.SimpleNamespace(is_package=lambda name: has_model))


def install_nltk(monkeypatch: pytest.MonkeyPatch, data: tuple[str, ...] = ()) -> None:
    def need(name: str) -> None:  # NLTK says so when its data are used, on a page full of stars
        if name not in data:
            raise LookupError(f'\n{70 * "*"}\n  Resource {name} not found.\n')

    def tokenize(text: str) -> list[str]:  # NLTK's tokenizer rewrites quotation marks
        need('punkt_tab')
        return [{'"': '``'}.get(word, word) for word in split(text)]

    def tag(tokens: list[str]) -> list[tuple[str, str]]:
        need('averaged_perceptron_tagger_eng')
        return [(word, TAGS[word]) for word in tokens]

    install(monkeypatch, 'nltk', word_tokenize=tokenize, pos_tag=tag)


def uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('spacy', 'nltk'):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(nouns.importlib.util, 'find_spec', lambda name: sys.modules.get(name))


ENGLISH = ('punkt_tab', 'averaged_perceptron_tagger_eng')


@pytest.mark.parametrize('backend', ['spacy', 'nltk'])
def test_words_are_kept_by_their_tags(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    uninstall(monkeypatch)
    install_spacy(monkeypatch)
    install_nltk(monkeypatch, ENGLISH)
    extractor = NounExtractor(backend)
    found = extractor.extract(CAPTION)
    assert words(found) == ['woman', 'walks', 'dogs', 'fire', 'truck']
    assert all(CAPTION[noun.start : noun.end] == noun.text and noun.label is None for noun in found)
    assert words(NounExtractor(backend, tags=['NNS']).extract(CAPTION)) == ['dogs']
    assert extractor.extract('') == []
    assert {'NNPS', 'JJ'}.isdisjoint(GROUPVIT_TAGS)


@pytest.mark.parametrize('backend', ['spacy', 'nltk'])
def test_phrases_end_in_a_noun_and_a_final_one_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    uninstall(monkeypatch)
    install_spacy(monkeypatch)
    install_nltk(monkeypatch, ENGLISH)
    extractor = NounExtractor(backend, phrases=True)
    assert words(extractor.extract(CAPTION)) == ['woman', 'dogs', 'red fire truck']
    assert words(extractor.extract('two dogs past a bowl of fresh fruit')) == ['dogs', 'bowl of fresh fruit']
    assert words(extractor.extract('a "red" truck')) == ['truck']


@pytest.mark.parametrize(
    ('caption', 'tagged', 'found'),
    [
        ('a 5km run', [('DT', 0, 1), ('CD', 2, 3), ('NN', 3, 5), ('NN', 6, 9)], ['5km run']),
        ('wanna ring', [('NN', 0, 3), ('TO', 3, 5), ('NN', 6, 10)], ['wanna', 'ring']),
        ('star2ring', [('NN', 0, 4), ('CD', 4, 5), ('NN', 5, 9)], ['star2ring']),
        ("dog's 東京bowl", [('NN', 0, 3), ('POS', 3, 5), ('DT', 6, 8), ('NN', 8, 12)], ['dog', 'bowl']),
    ],
)
def test_phrases_of_a_tagger_are_whole_words(
    monkeypatch: pytest.MonkeyPatch, caption: str, tagged: list[tuple[str, int, int]], found: list[str]
) -> None:
    """Taggers cut '5km' and 'wanna' in two; a phrase that splits a word is one that no prompt takes."""
    install_spacy(monkeypatch)
    extractor = NounExtractor('spacy', phrases=True)
    monkeypatch.setattr(extractor, '_tag', lambda text: [nouns.Token(*token) for token in tagged])
    phrases = extractor.extract(caption)
    assert words(phrases) == found
    caption_prompt(caption, [[[noun.start, noun.end]] for noun in phrases])


def test_nothing_is_used_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch)
    with pytest.raises(ImportError, match='pip install spacy'):
        NounExtractor('spacy')
    with pytest.raises(ImportError, match='pip install nltk'):
        NounExtractor('nltk')
    install_spacy(monkeypatch, has_model=False)
    with pytest.raises(ImportError, match="pipeline 'en_core_web_sm', which is not installed"):
        NounExtractor('spacy')
    for data in (('punkt_tab',), ('punkt', 'averaged_perceptron_tagger')):  # some of it; that of old versions
        install_nltk(monkeypatch, data)
        with pytest.raises(ImportError, match='averaged_perceptron_tagger_eng'):
            NounExtractor('nltk')


def test_auto_takes_what_is_installed_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uninstall(monkeypatch)
    nouns._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert NounExtractor(vocabulary='coco').backend == 'vocabulary'
    assert [record.message for record in caplog.records] == [
        'nouns of captions are the names of the vocabulary: neither spaCy nor NLTK is installed with its '
        'English data'
    ]
    caplog.clear()
    bare = NounExtractor()
    assert words(bare.extract('a dog behind two air conditioners')) == ['dog', 'air conditioners']
    assert "the built-in vocabulary 'lvis'" in caplog.messages[0]
    install_nltk(monkeypatch, ENGLISH)
    assert NounExtractor(vocabulary='coco').backend == 'nltk'
    install_spacy(monkeypatch)
    caplog.clear()
    assert NounExtractor().backend == 'spacy'
    assert caplog.messages == ['nouns of captions are found by spacy']


def test_wrong_options_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch)
    with pytest.raises(ValueError, match=r"backend of nouns must be one of .*, got 'stanza'"):
        NounExtractor('stanza')
    with pytest.raises(ValueError, match='needs a vocabulary'):
        NounExtractor('vocabulary')
    with pytest.raises(ValueError, match="list of Penn Treebank tags, got 'NN'"):
        NounExtractor('vocabulary', vocabulary='coco', tags='NN')


def test_installed_taggers_work() -> None:
    """With whatever this machine has; the stand-ins above prove the rest."""
    extractor = NounExtractor(vocabulary=['dog', 'truck'])
    assert {'dogs', 'truck'} <= set(words(extractor.extract(CAPTION)))
