"""From scores to answers: rivals, one name per object, thresholds, and what a model knows."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovd.encoders.knowledge import Knowledge
from ovd.inference.answering import (
    AnswerOptions,
    choose_rivals,
    contrasting_names,
    question_vocabulary,
    resolve_instances,
    resolve_pixels,
    word_notices,
)
from ovd.inference.fit_answers import Judged, best_threshold, judge
from ovd.inference.predictions import Prediction, Segmentation
from ovd.inference.predictor import Predictor
from ovd.text.vocabulary import Vocabulary
from tests.toys.predictor import write_toy
from tests.toys.segmentor import write_toy_segmentor

LEFT, RIGHT = [0.0, 0, 10, 10], [20.0, 0, 30, 10]


def prediction(*rows: tuple[list[float], float, int], names: tuple[str, ...]) -> Prediction:
    boxes, scores, labels = zip(*rows)
    return Prediction(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.array(labels),
        tuple(names[label] for label in labels),
        None,
        (40, 40),
    )


def test_rivals_cannot_name_what_was_asked() -> None:
    known = ['star', 'ring', ['sofa', 'couch'], 'hot dog', 'Cats']
    assert choose_rivals(Vocabulary(['red star']), known, contrasts=False) == (
        'ring',
        'sofa',
        'hot dog',
        'Cats',
    )
    assert choose_rivals(Vocabulary(['couch', 'dog', 'cat']), known) == ('star', 'ring')
    assert choose_rivals(Vocabulary(['a'], synonyms={'a': ['a', 'ring']}), ['ring', 'b'], False) == ('b',)


def test_colours_compete_with_other_colours() -> None:
    others = contrasting_names('big red star')
    assert 'big green star' in others
    assert 'big red star' not in others
    assert contrasting_names('red') == [], 'a bare colour may be a fruit'
    rivals = choose_rivals(Vocabulary(['red star', 'blue star']), ())
    assert 'green star' in rivals
    assert not {'red star', 'blue star'} & set(rivals)


def test_a_question_marks_words_without_boxes_as_novel() -> None:
    known = Vocabulary(['star', 'heart', 'ring'], novel=['heart'])
    whole = question_vocabulary(Vocabulary(['star', 'fig', 'heart']), ['ring'], known)
    assert whole.names == ('star', 'fig', 'heart', 'ring')
    assert whole.novel_names == ('fig', 'heart')
    assert question_vocabulary(Vocabulary(['a']), ['b'], None).novel_names == ()


def test_an_object_has_one_name_and_its_runners_up() -> None:
    found = prediction(
        (LEFT, 0.6, 0), (LEFT, 0.5, 1), (LEFT, 0.2, 2), (RIGHT, 0.4, 1), names=('star', 'sun', 'ring')
    )
    answer = resolve_instances(found, ('star', 'sun', 'ring'), AnswerOptions(threshold=0.3))
    assert answer.names == ('star', 'sun')
    np.testing.assert_allclose([pair[1] for pair in answer.runners_up[0]], [0.5, 0.2])
    assert [pair[0] for pair in answer.runners_up[0]] == ['sun', 'ring']
    assert answer.runners_up[1] == ()
    assert answer.presence == pytest.approx({'star': 0.6, 'sun': 0.4, 'ring': 0.0})


def test_a_rival_takes_its_object_and_is_told() -> None:
    found = prediction((LEFT, 0.9, 1), (LEFT, 0.8, 0), (RIGHT, 0.5, 0), names=('star', 'cross'))
    answer = resolve_instances(found, ('star',), AnswerOptions(threshold=0.3))
    assert answer.names == ('star',)
    assert answer.boxes.tolist() == [RIGHT]
    assert [name for name, _ in answer.seen_instead] == ['cross']
    content = json.loads(json.dumps(answer.to_dict()))
    assert content['seen_instead'][0]['name'] == 'cross'
    assert content['presence']['star'] == pytest.approx(0.5)


def test_thresholds_of_words_win_over_the_common_one() -> None:
    found = prediction((LEFT, 0.5, 0), (RIGHT, 0.5, 1), names=('star', 'ring'))
    options = AnswerOptions(threshold=0.6).with_threshold({'ring': 0.4})
    answer = resolve_instances(found, ('star', 'ring'), options)
    assert answer.names == ('ring',)
    assert answer.presence['star'] == 0.5, 'below the threshold, but told'
    assert options.with_threshold(0.1).threshold_of('ring') == 0.1


@pytest.mark.parametrize('value', [float('nan'), -0.1, 1.5, 'high', True])
def test_thresholds_outside_their_range_are_refused(value: object) -> None:
    for threshold in (value, {'star': value}):
        with pytest.raises(ValueError, match='0 to 1'):
            AnswerOptions().with_threshold(threshold)  # type: ignore[arg-type]


def test_nothing_found_is_an_answer() -> None:
    nothing = replace(prediction((LEFT, 0.1, 0), names=('a',)), boxes=np.zeros((0, 4)), scores=np.zeros(0))
    nothing = replace(nothing, labels=np.zeros(0, int), names=())
    answer = resolve_instances(nothing, ('a', 'b'), AnswerOptions())
    assert len(answer) == 0
    assert answer.presence == {'a': 0.0, 'b': 0.0}


def test_pixels_of_rivals_become_background() -> None:
    labels = np.array([[0, 0, 2, 2], [0, 1, 3, 3]])
    found = Segmentation(labels, ('star', 'ring', 'cross'), background=3)
    answer = resolve_pixels(found, 2, AnswerOptions(min_area=0.2))
    assert answer.labels.tolist() == [[0, 0, 2, 2], [0, 2, 2, 2]], 'one pixel of ring is too little'
    assert answer.vocabulary == ('star', 'ring')
    assert answer.background == 2
    assert answer.presence == {'star': 3 / 8, 'ring': 1 / 8}
    assert answer.seen_instead == (('cross', 0.25),)
    without = resolve_pixels(Segmentation(labels, ('star', 'ring', 'cross', 'sun')), 2, AnswerOptions())
    assert without.labels.tolist() == [[0, 0, -1, -1], [0, 1, -1, -1]]


def test_threshold_is_the_lowest_that_reaches_the_precision() -> None:
    judged = [
        Judged('a', score, right) for score, right in [(0.9, True), (0.8, True), (0.7, False), (0.6, True)]
    ]
    assert best_threshold(judged, 4, precision=0.75) == 0.6
    assert best_threshold(judged, 4, precision=0.9) == 0.8
    never = [Judged('a', 0.9, False), Judged('a', 0.5, True), Judged('a', 0.4, False)]
    assert best_threshold(never, 1, precision=0.9) == 0.5, 'the best F1'
    assert best_threshold([], 3, precision=0.9) == 1.0


def test_each_object_makes_one_answer_right() -> None:
    found = prediction((LEFT, 0.9, 0), (LEFT, 0.8, 0), (RIGHT, 0.7, 1), names=('star', 'ring'))
    judged = judge(found, [('star', np.array(LEFT)), ('star', np.array(RIGHT))])
    assert [answer.is_right for answer in judged] == [True, False, False]


@pytest.fixture(scope='module')
def knowledge() -> Knowledge:
    random = np.random.default_rng(0)
    pictures = []
    for index in range(60):
        picture = np.full((64, 64, 3), random.integers(100, 250, 3), np.uint8)
        picture[10 : 20 + index % 20, 10:30] = random.integers(0, 255, 3)
        pictures.append(picture)
    return Knowledge.fit('drawings', ['a red star', 'two crosses'], pictures)


def test_a_model_knows_pictures_and_words(knowledge: Knowledge) -> None:
    drawing = np.full((80, 100, 3), 180, np.uint8)
    drawing[20:40, 30:60] = (200, 30, 30)
    noise = np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    assert not knowledge.is_foreign(drawing)
    assert knowledge.is_foreign(noise)
    assert knowledge.unknown_words(['the red stars', 'cross', 'red bicycle']) == {'red bicycle': ('bicycle',)}
    assert knowledge.nearest_words('stair') == ('star',)
    again = Knowledge.from_dict(json.loads(json.dumps(knowledge.to_dict())))
    assert again.words == knowledge.words
    assert again.is_foreign(noise)
    with pytest.raises(ValueError, match=r'x\.json'):
        Knowledge.from_dict({'images': 'a'}, 'x.json')


def test_unknown_words_are_told_with_known_ones(knowledge: Knowledge) -> None:
    options = AnswerOptions(knowledge=knowledge)
    (notice,) = word_notices(['bicycle', 'star'], options, ['ring', 'cross'])
    for part in ("'bicycle'", 'drawings', 'ring, cross'):
        assert part in notice
    assert word_notices(['bicycle'], AnswerOptions(), ['ring']) == ()


def test_options_lie_beside_the_weights(tmp_path: Path, knowledge: Knowledge) -> None:
    options = AnswerOptions(0.42, {'a': 0.5}, ('b',), knowledge=knowledge, fitted_on='val.json')
    options.save(tmp_path)
    loaded = AnswerOptions.load(tmp_path)
    assert loaded is not None
    assert loaded.to_dict() == options.to_dict()
    assert AnswerOptions.load(tmp_path / 'nowhere') is None
    (tmp_path / 'answering.json').write_text('{"threshold": 7}')
    with pytest.raises(ValueError, match=r'answering\.json.*7'):
        AnswerOptions.load(tmp_path)
    (tmp_path / 'answering.json').write_text('{"treshold": 0.7}')
    with pytest.raises(ValueError, match='treshold'):
        AnswerOptions.load(tmp_path)


def color(*rgb: int) -> np.ndarray:
    return np.full((48, 64, 3), rgb, np.uint8)


def test_the_predictor_answers_with_rivals_unless_told_otherwise(tmp_path: Path) -> None:
    """The toy scores 'red' and 'green' by colour; as words of its config each is a rival of the other."""
    predictor = Predictor(*write_toy(tmp_path), device='cpu')
    image = color(150, 200, 0)
    (raw,) = predictor.predict(image, 'red', raw=True)
    assert raw.names == ('red',)
    assert not raw.presence
    (answer,) = predictor.predict(image, 'red')
    assert answer.names == ()
    assert answer.presence == {'red': 0.0}
    assert [name for name, _ in answer.seen_instead] == ['green']
    (answer,) = predictor.predict(color(200, 150, 0), 'red')
    assert answer.names == ('red',)
    assert [name for name, _ in answer.runners_up[0]] == ['green']
    assert predictor.vocabulary.names == ('red', 'green'), 'words of one call only'
    (answer,) = predictor.predict(color(60, 0, 0), 'red')
    assert answer.names == (), 'below the default threshold'
    (answer,) = predictor.predict(color(60, 0, 0), 'red', score_threshold={'red': 0.2})
    assert answer.names == ('red',)


def test_counts_below_one_are_refused(tmp_path: Path) -> None:
    predictor = Predictor(*write_toy(tmp_path), device='cpu')
    with pytest.raises(ValueError, match='max_per_image is -1'):
        predictor.predict(color(1, 2, 3), max_per_image=-1)


def test_stored_options_are_used(tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    AnswerOptions(threshold=0.9, rivals=()).save(tmp_path)
    predictor = Predictor(config, checkpoint, device='cpu')
    assert predictor.predict(color(200, 250, 0), 'red')[0].names == ()
    assert predictor.predict(color(250, 250, 0), 'red')[0].names == ('red',)


def test_draw_takes_what_predict_takes(tmp_path: Path) -> None:
    from PIL import Image

    predictor = Predictor(*write_toy(tmp_path), device='cpu')
    Image.fromarray(color(250, 0, 0)).save(tmp_path / 'a.png')
    (answer,) = predictor.predict(tmp_path / 'a.png', 'red')
    pictures = [
        answer.draw(s) for s in (tmp_path / 'a.png', Image.open(tmp_path / 'a.png'), color(250, 0, 0))
    ]
    assert all(np.array_equal(pictures[0], other) for other in pictures)


def test_threads_with_words_of_their_own_get_their_own_answers(tmp_path: Path) -> None:
    predictor = Predictor(*write_toy(tmp_path), device='cpu')
    questions = [f'red {i}, green {i}, other {i}' for i in range(8)] * 4
    image = color(200, 130, 0)

    def ask(words: str) -> list[tuple[tuple[str, ...], list[float]]]:
        return [
            (a.names, a.scores.tolist())
            for raw in (True, False)
            for a in predictor.predict(image, words, raw=raw)
        ]

    serial = [ask(words) for words in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, questions)) == serial
    assert serial[0] != serial[1]


def test_a_segmentor_lets_other_words_win_pixels(tmp_path: Path) -> None:
    predictor = Predictor(*write_toy_segmentor(tmp_path), device='cpu')
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32, 0] = image[:, 32:, 1] = 255
    (answer,) = predictor.predict(image, 'red')
    assert answer.names == ('red',)
    assert (answer.labels[:, 40:] == -1).all()
    assert answer.presence['red'] == pytest.approx(0.5, abs=0.05)
    assert [name for name, _ in answer.seen_instead] == ['green']
    (raw,) = predictor.predict(image, 'red', raw=True)
    assert (raw.labels == 0).all()
