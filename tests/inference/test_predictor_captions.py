"""Sentences as questions: the predictor's groundings, the panel below the picture, the demo's --caption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from ovd.checkpoints.writing import save_tensors
from ovd.inference.draw import load_typeface
from ovd.inference.draw_caption import Mark, break_lines, draw_caption, stack
from ovd.inference.predictions import Grounding, Phrase
from ovd.inference.predictor import Predictor
from tests.cli.test_demo import Run, demo  # noqa: F401  (a fixture)
from tests.toys.glip import images, toy_config, toy_glip
from tests.toys.predictor import write_toy

pytest.importorskip('transformers')

CAPTION = 'a red star above a ring, and the Star'


@pytest.fixture(scope='module')
def glip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config and checkpoint of a toy GLIP."""
    folder = tmp_path_factory.mktemp('captions')
    text = {
        'encoder': {'model': str(folder / 'bert')},
        'vocabulary': ['star', 'ring'],
        'nouns': {'backend': 'vocabulary'},
    }
    model = toy_config(folder / 'bert', text=text, test_cfg={'score_thr': 0.0, 'max_per_img': 30})
    save_tensors(folder / 'weights.safetensors', toy_glip(folder / 'bert').state_dict())
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'text', 'tokens_positive')
    pipeline = [
        {'type': 'ovd.LoadImage'},
        {'type': 'mmdet.Resize', 'scale': (96, 64), 'keep_ratio': True},
        {'type': 'mmdet.LoadAnnotations', 'with_bbox': True},
        {'type': 'mmdet.PackDetInputs', 'meta_keys': keys},
    ]
    whole = {'model': model, 'test_dataloader': {'dataset': {'pipeline': pipeline}}, 'default_scope': 'mmdet'}
    Config(whole).dump(folder / 'glip.py')
    return folder / 'glip.py', folder / 'weights.safetensors'


@pytest.fixture(scope='module')
def predictor(glip: tuple[Path, Path]) -> Predictor:
    return Predictor(*glip, device='cpu')


def picture(seed: int = 0, shape: tuple[int, int] = (64, 96)) -> np.ndarray:
    return images([shape], seed)[0].permute(1, 2, 0).numpy()


def test_phrases_are_found_in_the_sentence(predictor: Predictor) -> None:
    (answer,) = predictor.ground(picture(), CAPTION, raw=True)
    assert answer.caption == CAPTION
    assert answer.phrases == (
        Phrase('red star', ((2, 10),)), Phrase('ring', ((19, 23),)), Phrase('Star', ((33, 37),))
    )  # fmt: skip
    assert len(answer) == 30
    assert answer.names == tuple(answer.phrases[label].text for label in answer.labels)
    assert (np.diff(answer.scores) <= 0).all()
    assert answer.size == (64, 96)
    assert predictor.vocabulary.names == ('star', 'ring')
    assert set(predictor.predict(picture(), raw=True)[0].names) <= {'star', 'ring'}


def test_phrases_as_words_and_as_characters_agree(predictor: Predictor) -> None:
    words: list[Any] = ['star', 'STAR', [[2, 5], [33, 37]]]
    (answer,) = predictor.ground(picture(), CAPTION, words, raw=True)
    assert answer.phrases == (
        Phrase('star', ((6, 10),)), Phrase('star', ((6, 10),)), Phrase('red / Star', ((2, 5), (33, 37)))
    )  # fmt: skip
    (twice,) = predictor.ground(picture(), CAPTION, ['star', 'star'], raw=True)
    assert [phrase.spans for phrase in twice.phrases] == [((6, 10),), ((33, 37),)]
    (spans,) = predictor.ground(picture(), CAPTION, [[[6, 10]], [[33, 37]]], raw=True)
    assert np.array_equal(spans.boxes, twice.boxes)
    assert np.array_equal(spans.labels, twice.labels)


def test_the_model_is_asked_as_by_a_data_set(predictor: Predictor) -> None:
    """The numbers are those of a data sample with this text, for every batch size."""
    pictures = [picture(0), picture(1, (96, 64)), picture(2)]
    alone = [predictor.ground(image, CAPTION, raw=True)[0] for image in pictures]
    for ours, other in zip(predictor.ground(pictures, CAPTION, batch_size=3, raw=True), alone):
        assert ours.size == other.size
        np.testing.assert_allclose(ours.scores, other.scores, atol=1e-5)
    inputs, sample = predictor.prepare(pictures[0])
    sample.set_metainfo({'text': CAPTION, 'tokens_positive': [[[2, 10]], [[19, 23]], [[33, 37]]]})
    with torch.no_grad():
        (expected,) = predictor.model.predict(inputs, [sample])
    np.testing.assert_allclose(alone[0].scores, expected.pred_instances.scores.numpy(), atol=1e-6)


def test_threshold_and_limit_keep_the_phrases(predictor: Predictor) -> None:
    (answer,) = predictor.ground(picture(), CAPTION, max_per_image=2, raw=True)
    assert len(answer) == 2
    assert len(answer.phrases) == 3
    (nothing,) = predictor.ground(picture(), CAPTION, score_threshold=1.0, raw=True)
    assert len(nothing) == 0
    assert [phrase['phrase'] for phrase in nothing.to_dict()['phrases']] == ['red star', 'ring', 'Star']
    assert nothing.draw(picture()).shape[1] == 8 * 96


@pytest.mark.parametrize(
    ('phrases', 'message'),
    [
        (['moon'], 'moon'),
        (['rin'], "'rin'"),
        ([[[2, 99]]], r'\[2, 99\)'),
        ([[[3, 10]]], 'ed star'),
        ('red star', "expected a list of at least one phrase, got 'red star'"),
        ([], 'at least one phrase'),
        (-1, r'got -1; the whole sentence is \[\[\[0, 37\]\]\]'),
    ],
)
def test_wrong_phrases_are_named(predictor: Predictor, phrases: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.ground(picture(), CAPTION, phrases, raw=True)


def test_sentences_without_nouns_and_models_without_sentences(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no noun was found in caption 'over there': say which phrases"):
        predictor.ground(picture(), 'over there', raw=True)
    with pytest.raises(ValueError, match=r'ToyDetector .* sentences'):
        Predictor(*write_toy(tmp_path), device='cpu').ground(picture(), CAPTION, raw=True)


def grounding(names: tuple[str, ...]) -> Grounding:
    """A sentence of these phrases; the first one has a box."""
    spans = [(sum(len(name) + 1 for name in names[:place]), name) for place, name in enumerate(names)]
    return Grounding(
        boxes=np.array([[8, 8, 40, 40]], np.float32),
        scores=np.array([0.5], np.float32),
        labels=np.array([0]),
        names=names[:1],
        masks=None,
        size=(64, 96),
        caption=' '.join(names),
        phrases=tuple(Phrase(name, ((start, start + len(name)),)) for start, name in spans),
    )


def test_equal_phrases_are_told_apart_in_the_picture_only() -> None:
    answer = grounding(('star', 'ring', 'star'))
    assert answer.shown == ('star (1)', 'ring', 'star (2)')
    content = json.loads(json.dumps(answer.to_dict()))
    assert [phrase['phrase'] for phrase in content['phrases']] == ['star', 'ring', 'star']
    assert content['phrases'][2]['tokens_positive'] == [[10, 14]]
    assert content['instances'][0]['name'] == 'star'
    drawn = answer.draw(picture())
    assert drawn.shape[1] == 8 * 96
    assert drawn.shape[0] > 8 * 64


RED, BLUE = (255, 0, 0), (0, 0, 255)


def rows_of(panel: np.ndarray, color: tuple[int, int, int]) -> set[int]:
    return set(np.flatnonzero((panel == color).all(axis=2).any(axis=1)).tolist())


def test_phrases_are_underlined_where_they_stand() -> None:
    panel = draw_caption('red star', [Mark(0, 3, RED), Mark(4, 8, BLUE)], 300, 20)
    red, blue = ((panel == color).all(axis=2).any(axis=0).nonzero()[0] for color in (RED, BLUE))
    typeface = load_typeface(None, 20)
    assert red.max() < blue.min()
    assert abs(len(red) - typeface.getlength('red')) < 3
    assert rows_of(panel, RED) == rows_of(panel, BLUE)


def test_nested_phrases_are_underlined_below_each_other() -> None:
    marks = [Mark(4, 8, BLUE), Mark(0, 8, RED), Mark(0, 3, BLUE), Mark(9, 10, RED)]
    assert stack(marks) == [1, 0, 1, 0]
    panel = draw_caption('red star x', marks, 300, 20)
    assert max(rows_of(panel, RED)) < min(rows_of(panel, BLUE))
    assert stack([]) == []


def test_lines_break_at_blanks_and_keep_every_letter() -> None:
    typeface = load_typeface(None, 20)
    for text in (
        '  two words and   some more of them ',
        'x' * 60,
        '東京' * 30,
        'a ' + 'y' * 40 + ' b',
        '',
        ' ',
    ):
        lines = break_lines(text, 150, typeface)
        assert ''.join(text[start:end] for start, end in lines).replace(' ', '') == text.replace(' ', '')
        assert all(typeface.getlength(text[start:end]) <= 150 for start, end in lines)
    assert [
        'two words and some'[start:end] for start, end in break_lines('two words and some', 110, typeface)
    ] == ['two words', 'and some']
    wrapped = draw_caption('word\n' * 30, [Mark(0, 149, RED)], 200, 20)
    assert len(rows_of(wrapped, RED)) == 2 * len(break_lines('word ' * 30, 180, typeface))


def test_demo_draws_the_phrases_of_a_sentence(
    demo: Any,  # noqa: F811
    glip: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(demo, tmp_path, capsys, glip)
    image = tmp_path / 'photo.png'
    Image.fromarray(picture()).save(image)
    code, lines, errors = run(image, '--caption', CAPTION, '--score-thr', 0, '--max-per-image', 5)
    assert (code, errors) == (0, [])
    assert lines[0].startswith(f'{image}: 5 objects (')
    content = json.loads((run.out / 'photo.json').read_text())
    assert content['caption'] == CAPTION
    assert 'vocabulary' not in content
    assert content['phrases'][0] == {'phrase': 'red star', 'tokens_positive': [[2, 10]]}
    assert {instance['name'] for instance in content['instances']} <= {'red star', 'ring', 'Star'}
    drawn = np.asarray(Image.open(run.out / 'photo.png'))
    assert drawn.shape[0] > 8 * 64
    assert (drawn[-1] == 255).all()

    code, _, _ = run(image, '--caption', CAPTION, '--score-thr', 0, '--phrases', 'ring', '2:5+33:37')
    assert code == 0
    content = json.loads((run.out / 'photo.json').read_text())
    assert [phrase['phrase'] for phrase in content['phrases']] == ['ring', 'red / Star']
    for options, message in [
        (['--texts', 'ring'], '--texts and --caption are two questions'),
        (['--phrases', 'moon'], 'moon'),
        (['--phrases', '3:10'], 'ed star'),
    ]:
        code, _, errors = run(image, '--caption', CAPTION, *options)
        assert (code, len(errors)) == (2, 1)
        assert message in errors[0]
    code, _, errors = run(image, '--phrases', 'ring')
    assert code == 2
    assert '--phrases are those of a sentence' in errors[0]
