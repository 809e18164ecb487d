"""GLIP as a detector: questions of every kind, invariance, training, its errors."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor

from ovd.checkpoints.writing import save_tensors
from ovd.datasets.grounding.training_prompts import IGNORED, ignored_tokens, with_all_entities
from ovd.inference.predictor import Predictor
from ovd.models.glip.detector import GLIP
from ovd.models.glip.head import ImageTargets
from ovd.models.glip.training_targets import merged
from ovd.text.phrases import caption_prompt
from tests.toys.glip import WORDS, add_truth, batch, images, toy_config, toy_glip

pytest.importorskip('transformers')

SHAPES = [(64, 96), (80, 64)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('glip') / 'bert'


def detect(model: GLIP, data: dict[str, Any]) -> list[DetDataSample]:
    with torch.no_grad():
        return model.test_step(data)  # type: ignore[no-any-return]


def assert_same(ours: DetDataSample, other: DetDataSample, tolerance: float = 1e-5) -> None:
    left, right = ours.pred_instances, other.pred_instances
    assert left.label_names == right.label_names
    torch.testing.assert_close(left.scores, right.scores, atol=tolerance, rtol=0)
    torch.testing.assert_close(left.bboxes, right.bboxes, atol=100 * tolerance, rtol=0)


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
def test_class_lists_of_any_length(folder: Path, deep: bool) -> None:
    model = toy_glip(folder, deep)
    for words in (['dog'], WORDS, [f'class {number}' for number in range(300)]):
        model.set_vocabulary(words)
        assert model.vocabulary.names == tuple(words)
        (sample,) = detect(model, batch(images(SHAPES[:1])))
        found = sample.pred_instances
        assert 0 < len(found) <= 100
        assert found.bboxes.isfinite().all()
        assert found.scores.isfinite().all()
        assert [words[label] for label in found.labels.tolist()] == found.label_names
    assert len(found) == 100
    assert len({label // 40 for label in found.labels.tolist()}) > 1


def test_words_are_encoded_once(folder: Path) -> None:
    model = toy_glip(folder)
    first = detect(model, batch(images(SHAPES)))
    with patch.object(model.text, 'forward', side_effect=AssertionError('encoded again')):
        again = detect(model, batch(images(SHAPES)))
    for ours, other in zip(again, first):
        assert_same(ours, other, 0.0)


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
def test_neighbours_in_the_batch_do_not_matter(folder: Path, deep: bool) -> None:
    model = toy_glip(folder, deep)
    pictures = images([*SHAPES, SHAPES[0]])
    together = detect(model, batch(pictures))
    for index, picture in enumerate(pictures):
        (alone,) = detect(model, batch([picture]))
        assert_same(together[index], alone)


def test_how_many_pairs_are_run_at_a_time_does_not_matter(folder: Path) -> None:
    words = [f'class {number}' for number in range(60)]
    results = []
    for pairs in (1, 3, 100):
        model = toy_glip(folder, test_cfg={'pairs_per_forward': pairs})
        model.names_per_prompt = 20
        model.set_vocabulary(words)
        results.append(detect(model, batch(images(SHAPES))))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other):
            assert_same(ours, theirs)


def test_phrases_of_a_caption(folder: Path) -> None:
    model = toy_glip(folder)
    caption = 'a red star above a big ring, and a star'
    spans = [[[2, 10]], [[17, 27]], [[2, 5], [35, 39]]]
    data = batch(images(SHAPES), text=[caption, None], tokens_positive=[spans, None])
    sentence, listed = detect(model, data)
    names = ['red star', 'a big ring', 'red / star']
    assert [names[label] for label in sentence.pred_instances.labels] == sentence.pred_instances.label_names
    assert set(listed.pred_instances.label_names) <= set(WORDS)
    assert_same(listed, detect(model, batch(images(SHAPES)[1:]))[0])
    numbered = batch(images(SHAPES)[:1], text=[caption], tokens_positive=[{7: spans[1]}])
    assert set(detect(model, numbered)[0].pred_instances.labels.tolist()) == {7}


def test_nouns_of_a_free_caption(folder: Path) -> None:
    model = toy_glip(
        folder, text=model_text(folder, nouns={'backend': 'vocabulary'}), test_cfg={'score_thr': 0.0}
    )
    data = batch(images(SHAPES), text=['two Rings above a red star', 'nothing'])
    found, nothing = detect(model, data)
    assert set(found.pred_instances.label_names) == {'Rings', 'red star'}
    assert len(nothing.pred_instances) == 0
    assert nothing.pred_instances.label_names == []


def model_text(folder: Path, **changes: Any) -> dict[str, Any]:
    return {'encoder': {'model': str(folder)}, 'vocabulary': WORDS} | changes


def test_a_long_caption_is_read_in_windows(folder: Path) -> None:
    model = toy_glip(folder)
    caption = 'a red star above a big ring and ' * 60 + 'a dog'
    assert len(model.text.tokenizer.offsets(caption)) > 400
    spans = [[[2, 10]], [[len(caption) - 5, len(caption)]]]
    data = batch(images(SHAPES[:1]), text=[caption], tokens_positive=[spans])
    (sample,) = detect(model, data)
    assert set(sample.pred_instances.label_names) == {'red star', 'a dog'}
    assert sample.pred_instances.scores.isfinite().all()


def test_the_predictor_asks_it(folder: Path, tmp_path: Path) -> None:
    config = toy_config(folder, test_cfg={'score_thr': 0.0})
    save_tensors(tmp_path / 'weights.safetensors', toy_glip(folder).state_dict())
    pipeline = [
        {'type': 'ovd.LoadImage'},
        {'type': 'mmdet.Resize', 'scale': (96, 64), 'keep_ratio': True},
        {
            'type': 'mmdet.PackDetInputs',
            'meta_keys': ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        },
    ]
    whole = Config({'model': config, 'test_dataloader': {'dataset': {'pipeline': pipeline}}})
    predictor = Predictor(whole, tmp_path / 'weights.safetensors', device='cpu')
    picture = images([(64, 96)])[0].permute(1, 2, 0).numpy()
    (answer,) = predictor.set_vocabulary('ring, big dog').predict(picture, max_per_image=7, raw=True)
    assert set(answer.names) <= {'ring', 'big dog'}
    assert len(answer.boxes) == 7


def test_a_list_of_one_image(folder: Path) -> None:
    model = toy_glip(folder)
    (sample,) = detect(model, batch(images(SHAPES[:1]), text=[('ring', 'dog')]))
    model.set_vocabulary(['ring', 'dog'])
    assert_same(sample, detect(model, batch(images(SHAPES[:1])))[0], 0.0)


def test_boxes_return_to_the_original_image(folder: Path) -> None:
    model = toy_glip(folder)
    data = batch(images(SHAPES[:1]))
    (plain,) = detect(model, data)
    data = batch(images(SHAPES[:1]))
    data['data_samples'][0].set_metainfo({'scale_factor': (2.0, 2.0), 'ori_shape': (32, 48)})
    (half,) = detect(model, data)
    one = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(half.pred_instances.bboxes - one, (plain.pred_instances.bboxes - one) / 2)


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
def test_class_lists_and_captions_train_in_one_batch(folder: Path, deep: bool, autocast: bool) -> None:
    model = toy_glip(folder, deep).train()
    caption = 'a red star above a big ring'
    data = batch(
        images([*SHAPES, SHAPES[0]]),
        text=[None, caption, ('cat', 'dog')],
        tokens_positive=[None, {5: [[2, 10]]}, None],
    )
    boxes = [[[8, 8, 40, 40], [50, 10, 90, 60]], [[0, 0, 30, 70]], []]
    data = add_truth(data, boxes, [[0, 4], [5], []])
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        prepared = model.data_preprocessor(data, True)
        loss, log = model.parse_losses(model(**prepared, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert {'loss_cls', 'loss_bbox', 'loss_centerness'} <= set(log)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_raw_outputs_are_those_of_the_head(folder: Path) -> None:
    model = toy_glip(folder)
    data = model.data_preprocessor(batch(images([SHAPES[0]] * 2), text=[None, 'a dog']), False)
    with torch.no_grad():
        outputs = model(**data, mode='tensor')
    tokens = len(model._class_prompts[0].token_ids)
    places = sum(height * width for height, width in outputs.sizes)
    assert outputs.logits.shape == (2, places, tokens)
    assert outputs.deltas.shape == (2, places, 4)


def test_a_box_of_two_phrases_is_trained_for_both() -> None:
    boxes = torch.tensor([[5.0, 5.0, 9.0, 9.0], [1.0, 1.0, 4.0, 4.0], [5.0, 5.0, 9.0, 9.0]])
    tokens = torch.tensor([[True, False, False], [False, True, False], [True, False, True]])
    found = merged(ImageTargets(boxes, tokens))
    assert found.boxes.tolist() == [[1.0, 1.0, 4.0, 4.0], [5.0, 5.0, 9.0, 9.0]]
    assert found.tokens.tolist() == [[False, True, False], [True, False, True]]
    distinct = ImageTargets(boxes[:2], tokens[:2])
    assert merged(distinct) is distinct


def test_ignored_characters_do_not_count_in_the_loss(folder: Path) -> None:
    model = toy_glip(folder)
    spans = [{0: [[2, 10]]}]
    losses = []
    for ignored in (None, [[15, 20]]):
        metainfo = {'text': ['a red star and a dog'], 'tokens_positive': spans, 'tokens_ignored': [ignored]}
        data = add_truth(batch(images(SHAPES[:1]), **metainfo), [[[8, 8, 40, 40]]], [[0]])
        losses.append(model(**model.data_preprocessor(data, False), mode='loss'))
    all_counted, fewer = losses
    assert fewer['loss_cls'] < all_counted['loss_cls']
    assert fewer['loss_bbox'] == all_counted['loss_bbox']
    tokens = np.array([[False, False, True, False, False], [False, True, True, True, False]])
    found = ignored_tokens(tokens, np.array([False, True]))
    assert found.tolist() == [False, True, False, True, False]


def test_a_long_caption_is_trained_by_windows(folder: Path) -> None:
    model = toy_glip(folder).train()
    caption = 'a red star above a big ring and ' * 60 + 'a dog'
    spans = {4: [[2, 10]], 6: [[len(caption) - 5, len(caption)]]}
    for seed in range(3):
        torch.manual_seed(seed)
        metainfo = {'text': [caption, caption], 'tokens_positive': [spans, None]}
        data = add_truth(
            batch(images([SHAPES[0]] * 2), **metainfo), [[[8, 8, 40, 40], [50, 10, 90, 60]], []], [[4, 6], []]
        )
        prepared = model.data_preprocessor(data, True)
        (prompt, _), (boxes, _) = model._training_samples(prepared['data_samples'])
        assert len(prompt.prompt) == len(boxes) == 1
        losses = model(**prepared, mode='loss')
        assert all(loss.isfinite() for loss in losses.values())
        assert losses['loss_bbox'] > 0


def test_it_learns_an_image(folder: Path) -> None:
    """Boxes of two names are found again, each under its own name, after some steps."""
    model = toy_glip(folder, test_cfg={'max_per_img': 2, 'score_thr': 0.0}).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    picture[0, 0, 4:36, 4:28] = 255
    picture[0, 1, 30:60, 36:62] = 255
    boxes = [[[4.0, 4.0, 28.0, 36.0], [36.0, 30.0, 62.0, 60.0]]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(45):
        data = add_truth(batch(list(picture)), boxes, [[2, 1]])
        losses, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
        optimizer.zero_grad()
        losses.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    (sample,) = detect(model.eval(), batch(list(picture)))
    found = sample.pred_instances
    assert sorted(found.label_names) == ['dog', 'ring']
    expected = torch.tensor(boxes[0])[[0, 1] if found.label_names[0] == 'dog' else [1, 0]]
    torch.testing.assert_close(found.bboxes, expected, atol=4.0, rtol=0)


def test_wrong_training_data_are_named(folder: Path) -> None:
    model = toy_glip(folder).train()
    box = [[[8, 8, 40, 40]]]

    def train(labels: list[list[int]], **metainfo: Any) -> None:
        data = add_truth(batch(images(SHAPES[:1]), **metainfo), box, labels)
        model(**model.data_preprocessor(data, True), mode='loss')

    with pytest.raises(ValueError, match='label 9'):
        train([[9]])
    with pytest.raises(ValueError, match='splits a word'):
        train([[0]], text=['a cart'], tokens_positive=[[[[0, 5]]]])
    with pytest.raises(ValueError, match='0 prompts'):
        train([[0]], text=[()])
    model.set_vocabulary({'names': WORDS, 'novel': ['dog']})
    with pytest.raises(ValueError, match='dog'):
        train([[2]])
    model.set_vocabulary([f'class {number}' for number in range(300)])
    with pytest.raises(ValueError, match='SampleClassNames'):
        train([[0]])


def test_wrong_settings_are_named(folder: Path) -> None:
    for settings, message in [
        ({'rank': 1}, r"unknown keys \['rank'\] of test_cfg"),
        ({'ranking': 'score'}, "test_cfg.ranking must be one of .* got 'score'"),
        ({'aggregation': 'sum'}, "test_cfg.aggregation must be one of .* got 'sum'"),
        ({'pairs_per_forward': 0}, 'must be positive, got 0'),
    ]:
        with pytest.raises(ValueError, match=message):
            toy_glip(folder, test_cfg=settings)
    with pytest.raises(ValueError, match=r"unknown keys \['vocab'\] of text"):
        toy_glip(folder, text=model_text(folder, vocab=[]))
    silent = toy_glip(folder, text={'encoder': {'model': str(folder)}})
    with pytest.raises(ValueError, match='no vocabulary'):
        detect(silent, batch(images(SHAPES[:1])))
    with pytest.raises(ValueError, match='takes no templates'):
        silent.set_vocabulary(['dog'], ['a {}'])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'\(cat\)'):
        silent.set_vocabulary(['dog', '(cat)'])


def test_changed_weights_are_seen(folder: Path) -> None:
    """Words are encoded anew after training, and after a hook wrote to the weights' data."""
    model = toy_glip(folder)
    (before,) = detect(model, batch(images(SHAPES[:1])))
    for parameter in model.text.parameters():
        parameter.data.mul_(1.5)
    model.eval()
    (after,) = detect(model, batch(images(SHAPES[:1])))
    assert not close(before.pred_instances.scores, after.pred_instances.scores)


def close(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(torch.allclose(left, right, atol=1e-5))


def test_words_of_a_window_count_for_every_phrase_that_is_there() -> None:
    """Windows overlap: a phrase of another one is no absent word here, and a cut one is ignored."""
    caption = ' '.join(f'w{index:02}' for index in range(40))
    spans = {3: [[0, 11]], 5: [[20, 27]], 9: [[36, 47]], IGNORED: [[28, 31]]}
    whole = caption_prompt(caption, spans)
    window = whole.window(8, 43, [2])
    full = with_all_entities(window, whole)
    assert (full.text, full.start, window.labels) == (window.text, 8, (9,))
    assert full.labels == (IGNORED, 5, 9, IGNORED)
    assert full.spans == (((0, 3),), ((12, 19),), ((28, 35),), ((20, 23),))
    assert with_all_entities(whole, whole) == whole


def test_windows_of_a_long_caption_keep_the_boxes_of_all_their_phrases(folder: Path) -> None:
    model = toy_glip(folder).train()
    caption = 'a dog and ' * 140 + 'a red star above a big ring'
    phrases = {0: [[600, 605]], 1: [[len(caption) - 10, len(caption)]], 2: [[1000, 1005]]}
    metainfo = {'text': [caption], 'tokens_positive': [phrases]}
    boxes = [[[8, 8, 40, 40], [8, 8, 50, 40], [8, 8, 60, 40]]]
    data = add_truth(batch(images(SHAPES[:1]), **metainfo), boxes, [[0, 1, 2]])
    (sample,) = model.data_preprocessor(data, True)['data_samples']
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        prompts, instances = model._training_samples([sample])
        targets = model._targets(prompts, instances)
        seen.add(prompts[0].prompt.labels)
        assert len(targets.images[0].boxes) == len(prompts[0].prompt)
    assert seen == {(0, 2), (1, 2)}
