"""GLIP under odd questions: any number of classes, long and foreign texts; no bit depends on neighbours."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample

from ovd.encoders.tokens.bert_tokens import BertText
from ovd.encoders.tokens.prompt_features import PromptEncoder
from ovd.models.glip.detector import GLIP
from ovd.text.nouns import Noun, NounExtractor
from ovd.text.phrases import Prompt, caption_prompt, class_prompt, locate_phrases, positive_map
from ovd.text.vocabulary import Vocabulary
from tests.toys.bert import write_bert
from tests.toys.glip import WORDS, batch, images, toy_config, toy_glip

pytest.importorskip('transformers')

SHAPES = [(64, 96), (80, 64)]
ODD_NAMES = [
    'car', 'cart', 'c++', 'U.S. flag', 'flag', 'St. Bernard', 'car car', "dog's", 'café', '東京', 'ring-star',
    '[box]', 'red star', 'star', 'red', 'big/red', 'crane_(bird)', 'a', 'x' * 40, '100% car',
]  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('robust') / 'bert'


@pytest.fixture(scope='module', params=[True, False], ids=['deep', 'shallow'])
def model(request: pytest.FixtureRequest, folder: Path) -> GLIP:
    return toy_glip(folder, request.param)


@pytest.fixture(scope='module')
def bert(folder: Path) -> BertText:
    toy_config(folder)  # writes the folder
    return BertText(str(folder))


def detect(model: GLIP, data: dict[str, Any]) -> list[DetDataSample]:
    with torch.no_grad():
        return model.test_step(data)  # type: ignore[no-any-return]


def assert_sound(sample: DetDataSample, words: list[str], shape: tuple[int, int]) -> None:
    """Finite numbers, boxes on the image, labels with the user's own words."""
    found = sample.pred_instances
    assert len(found)
    assert found.scores.isfinite().all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert found.bboxes.isfinite().all()
    height, width = shape
    limits = torch.tensor([width, height, width, height])
    assert ((found.bboxes >= 0) & (found.bboxes <= limits)).all()
    assert found.label_names == [words[label] for label in found.labels.tolist()]


def assert_equal(ours: DetDataSample, other: DetDataSample) -> None:
    """Equal to the last bit."""
    left, right = ours.pred_instances, other.pred_instances
    assert left.label_names == right.label_names
    for key in ('scores', 'bboxes', 'labels'):
        assert torch.equal(left[key], right[key]), key


# --- numbers of classes, lengths of texts -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('words', 'at_least'), [(['dog'], 1), ('coco', 1), ('lvis', 20)], ids=['1', '80', '1203']
)
def test_class_lists_of_every_length(model: GLIP, words: Any, at_least: int) -> None:
    names = list(Vocabulary.parse(words).labels)
    model.set_vocabulary(words)
    assert len(model._class_prompts) >= at_least
    assert sorted(label for prompt in model._class_prompts for label in prompt.labels) == list(
        range(len(names))
    )
    (sample,) = detect(model, batch(images(SHAPES[:1])))
    assert_sound(sample, names, SHAPES[0])


def test_captions_of_400_tokens(model: GLIP) -> None:
    words = ['red star', 'big ring', 'the dog', 'a cat', 'blue cup']
    caption = ', '.join(f'{words[number % 5]} and car' for number in range(100))
    assert len(model.text.tokenizer.offsets(caption)) > 400
    spans = locate_phrases(caption, words * 20)
    (sample,) = detect(model, batch(images(SHAPES[:1]), text=[caption], tokens_positive=[spans]))
    assert_sound(sample, words * 20, SHAPES[0])
    assert len({label // 25 for label in sample.pred_instances.labels.tolist()}) > 1


def test_odd_names_are_found_under_their_own_spelling(model: GLIP) -> None:
    data = batch(images(SHAPES[:1]), text=[ODD_NAMES])
    (sample,) = detect(model, data)
    assert_sound(sample, ODD_NAMES, SHAPES[0])


def test_extreme_weights_give_no_nan(folder: Path) -> None:
    """Attention scores beyond the clamp, saturated probabilities; a black image."""
    model = toy_glip(folder)
    with torch.no_grad():
        for name, parameter in model.bbox_head.named_parameters():
            if any(part in name for part in ('attention.query', 'attention.key', 'project_text')):
                parameter.mul_(1e4)
    (sample,) = detect(model, batch(images(SHAPES[:1])))
    assert_sound(sample, WORDS, SHAPES[0])
    black = [torch.zeros_like(picture) for picture in images(SHAPES[:1])]
    (sample,) = detect(model, batch(black))
    assert_sound(sample, WORDS, SHAPES[0])


# --- spans --------------------------------------------------------------------------------------------------


def tokens_of(bert: BertText, prompt: Prompt) -> list[set[int]]:
    return [set(tokens) for tokens in positive_map(prompt, bert.tokenizer.offsets(prompt.text))]


def test_spans_of_odd_names_are_their_own_characters(bert: BertText) -> None:
    prompt = class_prompt(ODD_NAMES)
    for name, ((start, end),) in zip(ODD_NAMES, prompt.spans):
        expected = {'crane_(bird)': 'crane'}.get(name, name)
        assert prompt.text[start:end] == expected
    found = tokens_of(bert, prompt)
    offsets = bert.tokenizer.offsets(prompt.text)
    for name, tokens, ((start, end),) in zip(ODD_NAMES, found, prompt.spans):
        inside = {place for place, (b, e) in enumerate(offsets) if e > b and b >= start and e <= end}
        assert tokens == inside, name
    for left, right in pairwise(found):
        assert max(left) + 2 == min(right), 'one separator stands between two names'


def test_names_do_not_depend_on_their_neighbours(bert: BertText) -> None:
    """'car' has the same tokens whether 'cart' stands beside it or not."""
    counts = {name: len(tokens_of(bert, class_prompt([name]))[0]) for name in ODD_NAMES}
    for order in (ODD_NAMES, ODD_NAMES[::-1], ODD_NAMES[7:] + ODD_NAMES[:7]):
        lengths = [len(tokens) for tokens in tokens_of(bert, class_prompt(order))]
        assert lengths == [counts[name] for name in order]


@pytest.mark.parametrize(
    ('caption', 'phrases', 'spans'),
    [
        ('a cart and a car', ['car', 'cart'], [(13, 16), (2, 6)]),
        ('car, car; the car', ['car', 'car', 'car'], [(0, 3), (5, 8), (14, 17)]),
        ('a red star ring', ['red star ring', 'star', 'star ring'], [(2, 15), (6, 10), (6, 15)]),
        ('c++ and c', ['c++', 'c'], [(0, 3), (0, 1)]),
        ('the U.S. flag. A flag', ['U.S. flag', 'flag', 'flag'], [(4, 13), (9, 13), (17, 21)]),
        ('un café à 東京の車', ['café', '東京', 'à'], [(3, 7), (10, 12), (8, 9)]),
        ('İstanbul cat', ['cat'], [(9, 12)]),
        ('e\u0301toile and dog', ['dog'], [(12, 15)]),
        ('\U0001f600 dog \U0001f600 dog', ['dog', 'dog'], [(2, 5), (8, 11)]),
    ],
)  # fmt: skip
def test_phrases_keep_their_characters(
    bert: BertText, caption: str, phrases: list[str], spans: list[tuple[int, int]]
) -> None:
    located = locate_phrases(caption, phrases)
    assert [tuple(ranges[0]) for ranges in located] == spans
    prompt = caption_prompt(caption, located)
    assert [name.casefold() for name in prompt.names] == [phrase.casefold() for phrase in phrases]
    offsets = bert.tokenizer.offsets(prompt.text)
    for tokens, (start, end) in zip(tokens_of(bert, prompt), spans):
        covered = {char for token in tokens for char in range(*offsets[token])}
        assert covered == {char for char in range(start, end) if not caption[char].isspace()}


def test_repeated_and_nested_phrases_keep_their_labels(model: GLIP) -> None:
    caption = 'a red star above a red star'
    spans = [[[2, 10]], [[19, 27]], [[6, 10]], [[2, 10], [19, 27]]]
    (sample,) = detect(model, batch(images(SHAPES[:1]), text=[caption], tokens_positive=[spans]))
    assert_sound(sample, ['red star', 'red star', 'star', 'red star / red star'], SHAPES[0])


# --- invariance, to the last bit ----------------------------------------------------------------------------


def questions() -> dict[str, list[Any]]:
    """One question for each of three images."""
    caption = 'the red star above a big ring'
    return {
        'text': [None, caption, ('dog', 'cart', 'a very big blue cup')],
        'tokens_positive': [None, [[[4, 12]], [[19, 29]]], None],
    }


def test_neighbours_in_the_batch_change_no_bit(model: GLIP) -> None:
    """Images of equal and of other sizes, other questions, another order."""
    model.set_vocabulary([f'class {number}' for number in range(120)])
    pictures = images([SHAPES[0], SHAPES[1], SHAPES[0]])
    asked = questions()
    together = detect(model, batch(pictures, **asked))
    for index, picture in enumerate(pictures):
        model.train().eval()  # forgets the words
        (alone,) = detect(model, batch([picture], **{key: [asked[key][index]] for key in asked}))
        assert_equal(together[index], alone)
    model.train().eval()
    backwards = detect(model, batch(pictures[::-1], **{key: values[::-1] for key, values in asked.items()}))
    for ours, other in zip(together, reversed(backwards)):
        assert_equal(ours, other)


def test_padding_of_the_batch_changes_no_bit(model: GLIP) -> None:
    model.set_vocabulary(WORDS)
    small, large = images([(64, 64), (128, 160)])
    (alone,) = detect(model, batch([small]))
    padded, _ = detect(model, batch([small, large]))
    assert_equal(padded, alone)


def test_several_questions_about_one_image_change_no_bit(model: GLIP) -> None:
    """A single image with several samples gives what each of them gives alone."""
    model.set_vocabulary(WORDS)
    (picture,) = images(SHAPES[:1])
    asked = questions()
    apart = [
        detect(model, batch([picture], **{key: [values[index]] for key, values in asked.items()}))[0]
        for index in range(3)
    ]
    data = batch([picture] * 3, **asked)
    with torch.no_grad():
        inputs = model.data_preprocessor(batch([picture]), False)['inputs']
        together = model.predict(inputs, data['data_samples'])
    for ours, other in zip(together, apart):
        assert_equal(ours, other)


def test_words_have_the_same_features_whatever_is_encoded_beside_them(tmp_path: Path) -> None:
    encoder = BertText(str(write_bert(tmp_path / 'bert'))).eval()
    prompts = [class_prompt(names) for names in (['dog'], ['cat', 'red star'], ['a ring'] * 30)]
    together = PromptEncoder(encoder).encode(prompts)
    for prompt, kept in zip(prompts, together):
        (alone,) = PromptEncoder(encoder).encode([prompt])
        assert torch.equal(kept.hidden, alone.hidden)
        assert torch.equal(kept.embedded, alone.embedded)


def test_phrases_that_cannot_be_read_are_not_looked_for(model: GLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tagger takes joiners of emojis and lists of keywords for nouns, the text encoder does not."""
    keywords = ' '.join(['star'] * 300)
    caption = f'a dog \u200d and {keywords}'
    nouns = [Noun('dog', 2, 5), Noun('\u200d', 6, 7), Noun(keywords, 12, len(caption))]
    monkeypatch.setattr(NounExtractor, 'extract', lambda self, text: nouns)
    assert model.find_phrases(caption) == [[[2, 5]]]
    detect(model, batch(images(SHAPES[:1]), text=[caption]))
    assert model.readable_phrases(caption, []) == []
