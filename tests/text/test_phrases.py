"""Prompts, character ranges, tokens: by hand, and on the stored cases of the reference."""

import json
import re
from typing import Any

import numpy as np
import pytest

from ovd.text.phrases import (
    caption_prompt,
    check_wordings,
    class_prompt,
    clean_name,
    locate_phrases,
    positive_map,
    split_caption,
    split_names,
    splits_word,
    token_positions,
    word_name,
)
from tests.helpers import shared_path


def word_offsets(text: str) -> list[tuple[int, int]]:
    """A tokenizer of words and single other characters, with an empty token at both ends."""
    return [(0, 0), *(match.span() for match in re.finditer(r'\w+|[^\w\s]', text)), (0, 0)]


def cases() -> list[dict[str, Any]]:
    content = json.loads(shared_path('goldens/glip/positive_map_cases.json').read_text())
    return [case for case in content['cases'] if 'reference_error' not in case]


def test_names_in_a_sentence() -> None:
    prompt = class_prompt(['car', 'c++', 'U.S. flag', 'dog_(animal)', 'car'])
    assert prompt.text == 'car. c++. U.S. flag. dog. car'
    assert [prompt.text[s:e] for ((s, e),) in prompt.spans] == ['car', 'c++', 'U.S. flag', 'dog', 'car']
    assert prompt.names == ('car', 'c++', 'U.S. flag', 'dog_(animal)', 'car')
    assert prompt.labels == (0, 1, 2, 3, 4)
    assert positive_map(prompt, word_offsets(prompt.text)) == [
        [1],
        [3, 4, 5],
        [7, 8, 9, 10, 11],
        [13],
        [15],
    ]
    assert class_prompt(['a', 'b'], labels=[7, 3], final='. ').labels == (7, 3)
    assert class_prompt(['a', 'b'], final='. ').text == 'a. b. '


def test_a_class_is_the_name_of_its_wording() -> None:
    for name, wording, said, phrase in [
        ('hand', {'suffix': ' of a person'}, 'hand of a person', 'hand'),
        ('hand', {'prefix': 'a', 'suffix': 'of  a person '}, 'a hand of a person', 'hand'),
        ('CoW', {'name': 'flat_mushroom'}, 'flat mushroom', 'flat mushroom'),
        ('hand', {'suffix': '-held'}, 'hand-held', 'hand'),
        ('car', {}, 'car', 'car'),
        ('car', None, 'car', 'car'),
    ]:
        text, (start, end) = word_name(name, wording)
        assert (text, text[start:end]) == (said, phrase)
    prompt = class_prompt(['car', 'CoW', 'hand'], wordings={'CoW': {'prefix': 'the', 'name': 'cow'}})
    assert prompt.text == 'car. the cow. hand'
    assert [prompt.text[s:e] for ((s, e),) in prompt.spans] == ['car', 'cow', 'hand']
    assert prompt.names == ('car', 'CoW', 'hand')


def test_wrong_wordings_are_named() -> None:
    with pytest.raises(ValueError, match='after'):
        word_name('car', {'after': 'x'})
    with pytest.raises(ValueError, match='3'):
        word_name('car', {'name': 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r'\(x\)'):
        check_wordings({'car': {'name': '(x)'}}, ['car'])
    with pytest.raises(ValueError, match='cat'):
        check_wordings({'cat': {}}, ['car'])


def test_a_name_of_comments_only_is_refused() -> None:
    assert clean_name('  ice__cream (sweet) ') == 'ice cream'
    with pytest.raises(ValueError, match='unknown'):
        class_prompt(['dog', '(unknown)'])
    with pytest.raises(ValueError, match='3'):
        class_prompt(['dog', 3])  # type: ignore[list-item]


def test_unicode_names_keep_their_characters() -> None:
    names = ['café', 'naïve résumé', '東京タワー', 'dog 🐶', 'straße', 'İstanbul']
    prompt = class_prompt(names)
    assert [prompt.text[s:e] for ((s, e),) in prompt.spans] == names


def test_phrases_of_a_caption() -> None:
    prompt = caption_prompt('a car and a cart', [[[0, 5]], [[2, 5], [12, 16]], [[10, 16]]])
    assert prompt.text == 'a car and a cart. '
    assert prompt.names == ('a car', 'car / cart', 'a cart')
    assert positive_map(prompt, word_offsets(prompt.text)) == [[1, 2], [2, 5], [4, 5]]
    assert caption_prompt('a dog.', {5: [[0, 5]]}).labels == (5,)
    assert caption_prompt('a dog.', {5: [[0, 5]]}).text == 'a dog.'


@pytest.mark.parametrize(
    ('spans', 'message'),
    [
        (-1, r'-1.*\[\[0, 16\]\]'),
        ([-1], r'-1.*\[\[0, 16\]\]'),
        ([[[0, 17]]], r'\[0, 17\)'),
        ([[[3, 3]]], r'\[3, 3\)'),
        ([[[-1, 3]]], r'\[-1, 3\)'),
        ([[[1, 2]]], 'blank'),
        ([[[10, 15]]], "'a car'"),
        ([[[13, 16]]], 'splits'),
        ([[]], r'\[\]'),
        ([[[1]]], r'\[1\]'),
        ([[['a', 'b']]], "'a', 'b'"),
    ],
)
def test_bad_ranges_are_named(spans: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption_prompt('a car and a cart', spans)


def test_scripts_without_blanks_can_be_cut_anywhere() -> None:
    assert caption_prompt('東京タワー', [[[0, 2]]]).names == ('東京',)


def test_phrases_are_found_as_whole_words() -> None:
    caption = 'A cart, a car (a c++ [box]) and a car'
    found = locate_phrases(caption, ['a car', 'a cart', 'a c++', '[box]', 'a car'])
    assert [caption[s:e] for ((s, e),) in found] == ['a car', 'A cart', 'a c++', '[box]', 'a car']
    assert found[0] == [[8, 13]]
    assert found[4] == [[32, 37]]
    for phrases in (['unicorn'], ['box', 'box'], [' ']):
        with pytest.raises(ValueError, match=repr(phrases[0])):
            locate_phrases(caption, phrases)


def test_a_phrase_without_tokens_is_named() -> None:
    prompt = class_prompt(['dog', 'bird'])
    with pytest.raises(ValueError, match='bird'):
        positive_map(prompt, word_offsets(prompt.text)[:2])


def test_prompts_are_few_and_even() -> None:
    counts = [1] * 10
    assert split_names(counts, max_tokens=21) == [range(10)]
    # 20 tokens with separators do not fit 12 + 2: two prompts, as even as can be.
    assert split_names(counts, max_tokens=14) == [range(5), range(5, 10)]
    assert split_names(counts, max_tokens=256, per_prompt=4) == [range(4), range(4, 8), range(8, 10)]
    assert split_names([5, 5, 5, 1], max_tokens=13, per_prompt=3) == [range(2), range(2, 3), range(3, 4)]
    assert split_names([], max_tokens=10) == []


def test_no_prompt_of_a_large_vocabulary_is_too_long() -> None:
    counts = np.random.default_rng(0).integers(1, 7, 1203).tolist()
    prompts = split_names(counts, 256)
    assert [index for prompt in prompts for index in prompt] == list(range(1203))
    lengths = [sum(counts[i] for i in prompt) + len(prompt) - 1 for prompt in prompts]
    assert max(lengths) <= 254
    assert len(prompts) == -(-(sum(counts) + len(counts)) // 255)
    assert min(lengths) > 0.8 * max(lengths)


def test_a_long_caption_is_cut_between_its_phrases() -> None:
    words = [f'w{index}' for index in range(400)]
    caption = ' '.join(words)
    phrases = [' '.join(words[start : start + 3]) for start in (0, 40, 64, 65, 200, 397)]
    prompt = caption_prompt(caption, locate_phrases(caption, phrases))
    windows = split_caption(prompt, word_offsets(prompt.text), max_tokens=66)
    assert sorted(label for window in windows for label in window.labels) == list(range(6))
    for window in windows:
        assert len(word_offsets(window.text)) <= 66
        for label, name, ranges in zip(window.labels, window.names, window.spans):
            assert name == phrases[label]
            assert [window.text[s:e] for s, e in ranges] == [name]
    assert len(windows) < 6
    assert split_caption(prompt, word_offsets(prompt.text), max_tokens=500) == [prompt]
    wide = caption_prompt(caption, [[[0, 2], [len(caption) - 4, len(caption)]]])
    with pytest.raises(ValueError, match='400 tokens'):
        split_caption(wide, word_offsets(wide.text), max_tokens=66)


def test_a_long_caption_without_phrases_is_cut_into_consecutive_windows() -> None:
    prompt = caption_prompt(' '.join(f'w{index}' for index in range(100)) + '.', [])
    windows = split_caption(prompt, word_offsets(prompt.text), max_tokens=32)
    assert ' '.join(window.text for window in windows) == prompt.text
    assert [len(word_offsets(window.text)) for window in windows] == [32, 32, 32, 13]


def test_tokens_of_the_reference_cases() -> None:
    for case in cases():
        offsets = case['offsets']
        expected = [tokens for _, tokens in sorted((int(k), v) for k, v in case['label_to_token'].items())]
        reach = len(offsets)  # the file keeps the first 64 tokens
        for ranges, tokens in zip(case['char_spans'], expected, strict=True):
            found = token_positions(ranges, offsets)
            assert found == [token for token in tokens if token < reach], (case['id'], ranges)


def test_prompts_of_the_reference_cases() -> None:
    """Names give the reference's sentence and tokens; only blanks that tokenizers ignore are tidier here."""
    compared = 0
    for case in cases():
        if case['kind'] != 'class_list' or case['id'].startswith('parenthesis') or case['input']['prompt']:
            continue
        prompt = class_prompt(case['input']['classes'])
        assert ' '.join(case['caption'].split()).replace(' .', '.') == prompt.text
        if case['caption'] == prompt.text:
            assert [[list(span) for span in ranges] for ranges in prompt.spans] == case['char_spans']
            compared += 1
    assert compared >= 8


def test_captions_of_the_reference_cases() -> None:
    for case in cases():
        if case['kind'] == 'caption_spans' and case['id'] != 'span_three_blanks':
            prompt = caption_prompt(case['input']['caption'], case['input']['tokens_positive'])
            assert prompt.text == case['caption']
            assert list(prompt.names) == case['entities']


@pytest.mark.parametrize('spans', [[[0, 4]], [[401, 406]], [[0, 4], [401, 406]]])
def test_phrases_with_blanks_at_their_ends_lie_in_a_window(spans: list[list[int]]) -> None:
    """The blanks of a text's ends belong to no token, so no window has them."""
    caption = ' ' + ' '.join(f'w{index:02}' for index in range(100)) + ' a.   '
    prompt = caption_prompt(caption, [[span] for span in spans])
    windows = split_caption(prompt, word_offsets(prompt.text), max_tokens=12)
    assert [label for window in windows for label in window.labels] == list(range(len(spans)))
    for window in windows:
        assert window.text == prompt.text[window.start : window.start + len(window.text)]
        positions = positive_map(window, word_offsets(window.text))
        expected = [caption[start:end].split() for start, end in (spans[label] for label in window.labels)]
        words = [[window.text[slice(*word_offsets(window.text)[p])] for p in own] for own in positions]
        assert [''.join(own) for own in words] == [''.join(own) for own in expected]


def test_a_phrase_without_tokens_in_a_long_caption_is_named() -> None:
    caption = 'word ' * 30 + '\u200b. word'
    prompt = caption_prompt(caption, [[[150, 151]], [[0, 4]]])
    with pytest.raises(ValueError, match='u200b'):
        split_caption(prompt, [pair for pair in word_offsets(prompt.text) if pair != (150, 151)], 12)


def test_a_window_of_a_window_knows_where_it_begins() -> None:
    prompt = caption_prompt('a red star above a ring.', [[[2, 10]], [[17, 23]]])
    window = prompt.window(6, 24, [0, 1])
    assert window.spans == (((0, 4),), ((11, 17),))
    assert window.window(11, 18, [1]).start == 17
    assert window.window(11, 18, [1]).text == 'a ring.'


@pytest.mark.parametrize(
    ('text', 'position', 'splits'),
    [
        ('car', 1, True),
        ('a car', 2, False),
        ('cafe\u0301', 4, True),  # parts a letter from its accent
        ('cafe\u0301s', 5, True),
        ('cafe\u0301 s', 5, False),
        ('कारखाना', 3, True),  # after a vowel sign and a consonant
        ('का और', 2, False),
        ('東京', 1, False),
        ('รถยนต์', 2, False),  # Thai: no blanks between words
        ('ที่นี่', 1, True),  # a Thai vowel sign belongs to its letter
        ('カー', 1, False),
        ('ｶｰ', 1, False),
        ('東京tower', 2, False),
    ],
)  # fmt: skip
def test_where_a_cut_goes_through_a_word(text: str, position: int, splits: bool) -> None:
    assert splits_word(text, position) == splits
