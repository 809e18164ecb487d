"""Thresholds below which a class is background: the file, the fit, and counting with a model."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.evaluation.segmentation import SegmentationMetric
from ovd.inference.draw_groups import find_groups
from ovd.models.groupvit.calibration import calibrate, calibrate_without_masks, count_absent, count_scores
from ovd.models.groupvit.grouping import GroupingOutput
from ovd.models.groupvit.readout import SoftReadout
from ovd.models.groupvit.threshold_fit import (
    ScoreCounts,
    fit_learned,
    fit_overall,
    fit_per_class,
    quantiles,
)
from ovd.models.groupvit.thresholds import Thresholds
from ovd.text.vocabulary import Vocabulary
from tests.toys.groupvit import toy_groupvit


def text_of(names: list[str], matrix: Any = None, fingerprint: str = 'tower') -> TextEmbeddings:
    rows = torch.eye(len(names)) if matrix is None else F.normalize(torch.as_tensor(matrix).float(), dim=-1)
    return TextEmbeddings(rows, Vocabulary(names), (), fingerprint)


# --- the file -------------------------------------------------------------------------------------------


def test_thresholds_follow_the_names_not_their_order(tmp_path: Path) -> None:
    Thresholds(0.5, {'cat': 0.1, 'dog': 0.9}, (1.0, 0.0), 0.5, 'tower', {'images': 3}).save(
        tmp_path / 't.json'
    )
    found = Thresholds.load(tmp_path / 't.json')
    assert found.fit == {'images': 3}
    assert found.values(text_of(['dog', 'cat']), 'per_class').tolist() == pytest.approx([0.9, 0.1])
    assert found.values(text_of(['dog', 'cat']), 'overall').tolist() == [0.5, 0.5]
    learned = found.values(text_of(['x', 'y']), 'learned')
    assert learned.tolist() == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))])


def test_classes_without_a_threshold_are_refused_or_get_another() -> None:
    found = Thresholds(0.5, {'cat': 0.1}, (0.0, 0.0), 0.0, 'tower')
    text = text_of(['cow', 'cat'])
    with pytest.raises(ValueError, match='cow'):
        found.values(text, 'per_class')
    assert found.values(text, 'per_class', 'overall').tolist() == pytest.approx([0.5, 0.1])
    high = Thresholds(0.5, {'cat': 0.1}, (0.0, 0.0), 2.0, 'tower')
    assert high.values(text, 'per_class', 'learned').tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0.1])


@pytest.mark.parametrize(
    ('kind', 'fallback', 'value'),
    [
        ('global', 'error', 'global'),
        ('per_class', 'guess', 'guess'),
        ('learned', 'error', 'learned'),
    ],
)
def test_unknown_kinds_are_named(kind: str, fallback: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        Thresholds(0.5).values(text_of(['a', 'b']), kind, fallback)


def test_a_learned_threshold_belongs_to_its_text_encoder() -> None:
    found = Thresholds(0.5, {}, (0.0, 0.0), 0.0, 'other')
    with pytest.raises(ValueError, match=r'other.*tower'):
        found.values(text_of(['a', 'b']), 'learned')
    assert found.values(text_of(['a', 'b'], fingerprint=''), 'learned').tolist() == [0.5, 0.5]
    with pytest.raises(RuntimeError, match='size'):
        found.values(text_of(['a', 'b', 'c'], fingerprint=''), 'learned')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'JSON'),
        ('[]', 'TypeError'),
        ('{"format": "x", "version": 1}', "'x'"),
        ('{"format": "ovd.thresholds", "version": 9}', '9'),
        ('{"format": "ovd.thresholds", "version": 1}', 'overall'),
        ('{"format": "ovd.thresholds", "version": 1, "overall": "x", "per_class": {}}', "'overall' is 'x'"),
        (
            '{"format": "ovd.thresholds", "version": 1, "overall": 1, "per_class": {"a": NaN}}',
            "of 'a' is nan",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / 't.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        Thresholds.load(tmp_path / 't.json')
    with pytest.raises(FileNotFoundError, match='calibrate_thresholds'):
        Thresholds.load(tmp_path / 'absent.json')


# --- the fit --------------------------------------------------------------------------------------------


def counted(
    label: Any, score: Any, truth: Any, classes: int, bins: int = 100, unseen: list[int] | None = None
) -> ScoreCounts:
    counts = ScoreCounts.empty(classes, bins, with_background=True)
    is_unseen = np.isin(np.arange(classes), unseen or [])
    counts.add(np.array(label), np.array(score, float), np.array(truth), is_unseen)
    return counts


def planted(thresholds: list[float], seed: int = 0, pixels: int = 4000) -> ScoreCounts:
    """Pixels that are right above their class's threshold and background below it."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(thresholds), pixels)
    score = rng.random(pixels)
    truth = np.where(score >= np.array(thresholds)[label], label, len(thresholds))
    return counted(label, score, truth, len(thresholds))


def test_planted_thresholds_are_found() -> None:
    wanted = [0.2, 0.55, 0.9]
    values, is_own = fit_per_class(planted(wanted), overall=0.5, min_pixels=10)
    assert is_own.all()
    assert values == pytest.approx(wanted, abs=0.011)
    assert fit_overall(planted([0.4, 0.4, 0.4])) == pytest.approx(0.4, abs=0.011)


def test_iou_of_every_threshold_equals_a_plain_count() -> None:
    rng = np.random.default_rng(1)
    label, truth = rng.integers(-1, 3, 500), rng.integers(0, 4, 500)
    score = rng.integers(0, 21, 500) / 20
    counts = counted(label, score, truth, 3, bins=20)
    curves, background = counts.iou(), counts.background_iou()
    assert background is not None
    for step in range(20):
        shown = np.where((label >= 0) & (score >= step / 20), label, 3)
        for k, curve in [*enumerate(curves), (3, background)]:
            both, either = ((shown == k) & (truth == k)).sum(), ((shown == k) | (truth == k)).sum()
            assert curve[step] == pytest.approx(both / either), (step, k)


def test_classes_with_few_pixels_get_the_overall_threshold() -> None:
    # Class 1 has two pixels, class 2 none, class 3 is never right.
    label = [0] * 50 + [1, 1] + [0] * 50 + [0] * 20
    score = [0.8] * 50 + [0.9, 0.9] + [0.3] * 50 + [0.1] * 20
    truth = [0] * 50 + [1, 1] + [4] * 50 + [3] * 20
    values, is_own = fit_per_class(counted(label, score, truth, 4), overall=0.7, min_pixels=10)
    assert is_own.tolist() == [True, False, False, False]
    assert values[1:].tolist() == [0.7] * 3
    assert 0.3 < values[0] <= 0.8
    assert values[0] == pytest.approx((0.31 + 0.80) / 2)  # the middle of all that are as good


def test_pixels_of_unseen_classes_can_be_left_out() -> None:
    label, score, truth = [0] * 6, [0.9, 0.9, 0.8, 0.6, 0.6, 0.6], [0, 0, 0, 1, 1, 2]
    counts = counted(label, score, truth, 2, unseen=[1])
    assert counts.wrong[0].sum() == 3
    assert counts.without_unseen().wrong[0].sum() == 1  # background stays


def test_a_learned_threshold_transfers_to_words_without_masks() -> None:
    rng = np.random.default_rng(0)
    words = rng.normal(size=(24, 6))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    direction = np.array([1.5, -1.0, 0, 0, 0, 0])
    wanted = 1 / (1 + np.exp(-(words @ direction + 0.3)))
    counts = planted(wanted.tolist(), pixels=40_000)
    seen = np.arange(24) < 18
    found = fit_learned(counts, words, seen, min_pixels=100)
    predicted = 1 / (1 + np.exp(-(words @ found.weight + found.bias)))
    assert np.abs(predicted - wanted)[~seen].max() < 0.03
    assert found.held_out_iou > found.overall_iou + 0.02


def test_words_that_tell_nothing_give_one_threshold_for_all() -> None:
    rng = np.random.default_rng(0)
    words = rng.normal(size=(8, 32))
    counts = planted([0.4] * 8, pixels=20_000)
    found = fit_learned(counts, words, np.ones(8, bool), min_pixels=100)
    predicted = 1 / (1 + np.exp(-(words @ found.weight + found.bias)))
    assert predicted == pytest.approx(np.full(8, 0.4), abs=0.02)
    assert found.held_out_iou >= found.overall_iou
    with pytest.raises(ValueError, match='found 2'):
        fit_learned(counts, words, np.arange(8) < 2, min_pixels=100)


def test_quantiles_of_scores_of_absent_classes() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 1000), np.int64)
    counts[0] = np.bincount((rng.random(100_000) * 500).astype(int), minlength=1000)  # uniform in 0..0.5
    counts[1] = np.bincount((rng.random(100_000) * 200).astype(int), minlength=1000)  # uniform in 0..0.2
    counts[2, 10] = 5
    values, is_own, overall = quantiles(counts, 0.99, min_scores=100)
    assert values[:2] == pytest.approx([0.495, 0.198], abs=0.003)
    assert is_own.tolist() == [True, True, False]
    assert values[2] == overall == pytest.approx(0.49, abs=0.003)
    with pytest.raises(ValueError, match='prior'):
        quantiles(counts * 0, 0.5, 1)


def test_nothing_to_fit_on() -> None:
    with pytest.raises(ValueError, match='pixels'):
        fit_overall(counted([0], [0.5], [2], 2))


# --- with a model ---------------------------------------------------------------------------------------

PREPROCESSOR = {'type': 'mmseg.SegDataPreProcessor', 'mean': [0.0] * 3, 'std': [64.0] * 3, 'seg_pad_val': -1}
SOFT = {'type': 'ovd.SoftReadout', 'one_hot': True, 'class_topk': None, 'affinity': 'softmax'}


class ColorGroups(nn.Module):
    """Groups patches by the nearest of four colours; the feature of a group is its mean colour, lifted."""

    dim, patch_size, num_groups = 16, 8, 4

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.colors = 4 * torch.rand(4, 3, generator=random)
        self.lift = torch.randn(3, self.dim, generator=random)

    def forward(self, images: torch.Tensor) -> GroupingOutput:
        patches = F.avg_pool2d(images, self.patch_size)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        soft = (-3 * torch.cdist(self.colors.expand(len(images), -1, -1), patches)).softmax(1)
        means = soft @ patches / soft.sum(-1, keepdim=True)
        features = (means - 2) @ self.lift
        return GroupingOutput(features, features.mean(1), (soft,), (soft,), grid)


def model_with(readout: dict[str, Any] | None = None, **changes: Any) -> Any:
    model = toy_groupvit(
        readout={**SOFT, **(readout or {})},
        data_preprocessor=PREPROCESSOR,
        size_divisor=8,
        **changes,
    )
    model.image_encoder = ColorGroups()
    model.logit_scale.data.fill_(1.5)
    with torch.no_grad():  # class vectors that tell the groups apart
        inputs = torch.cat([model.data_preprocessor(batch)['inputs'] for batch in batches()])
        groups = model.group_predictions(inputs).group_embeddings.flatten(0, 1)
    model.set_vocabulary(text_of(['cat', 'dog', 'tree'], groups[[0, 5, 10]] - groups.mean(0), ''))
    return model


def batches(count: int = 6, size: tuple[int, int] = (40, 56)) -> list[dict[str, Any]]:
    """Noise in blocks, true labels in blocks, a few of them ignored; three classes and background."""
    result = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (3, size[0] // 8, size[1] // 8)).repeat(8, 1).repeat(8, 2)
        truth = rng.integers(-1, 4, (1, size[0] // 8, size[1] // 8)).repeat(8, 1).repeat(8, 2)
        sample = SegDataSample(metainfo={'ori_shape': size, 'img_shape': size, 'img_path': f'{seed}.jpg'})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth))
        result.append({'inputs': [torch.from_numpy(image).to(torch.uint8)], 'data_samples': [sample]})
    return result


def measured(model: Any) -> dict[str, float]:
    """IoU of each label when the model predicts."""
    metric = SegmentationMetric()
    metric.dataset_meta = {'classes': model.vocabulary.names, 'background': 'class'}
    for batch in batches():
        with torch.no_grad():
            samples = model.test_step(batch)
        metric.process({}, [sample.to_dict() for sample in samples])
    metric.evaluate(6)
    return {row['name']: row['IoU'] or 0.0 for row in metric.report['per_class']}


def test_counts_tell_what_the_model_scores_with_any_threshold(tmp_path: Path) -> None:
    counts, images = count_scores(model_with(), batches(), True, bins=1000)
    assert images == 6
    truth = torch.cat([batch['data_samples'][0].gt_sem_seg.data for batch in batches()])
    assert counts.pixels == (truth >= 0).sum()
    assert counts.truth.tolist() == [(truth == k).sum() for k in range(3)]
    assert counts.background == (truth == 3).sum()
    found = calibrate(model_with(), batches(), True, min_pixels=100)
    for kind, values in [('overall', [found.overall] * 3), ('per_class', list(found.per_class.values()))]:
        found.save(tmp_path / 't.json')
        model = model_with({'background': {'thresholds': tmp_path / 't.json', 'kind': kind}})
        scores = measured(model)
        for name, curve, value in zip(('cat', 'dog', 'tree'), counts.iou(), values):
            assert scores[name] == pytest.approx(curve[math.ceil(value * 1000)], abs=1e-6)


def test_per_class_thresholds_are_at_least_as_good_for_each_class(tmp_path: Path) -> None:
    calibrate(model_with(), batches(), True, min_pixels=100).save(tmp_path / 't.json')
    content = json.loads((tmp_path / 't.json').read_text())
    assert set(content['per_class']) == {'cat', 'dog', 'tree'}
    assert content['fit']['images'] == 6
    scores = {
        kind: measured(model_with({'background': {'thresholds': tmp_path / 't.json', 'kind': kind}}))
        for kind in ('overall', 'per_class', 'learned')
    }
    for name in ('cat', 'dog', 'tree'):
        assert scores['per_class'][name] >= scores['overall'][name] - 1e-9


def test_windows_are_counted_as_the_model_slides_them() -> None:
    model = model_with(test_cfg={'mode': 'slide', 'crop_size': 32, 'stride': 16, 'windows_per_forward': 2})
    counts, _ = count_scores(model, batches(2), True, bins=10)
    # Windows at rows 0, 8 and columns 0, 16, 24: each 32 x 32.
    expected = 0
    for batch in batches(2):
        truth = batch['data_samples'][0].gt_sem_seg.data[0]
        for top in (0, 8):
            for left in (0, 16, 24):
                expected += int((truth[top : top + 32, left : left + 32] >= 0).sum())
    assert counts.pixels == expected
    scaled = model_with(test_cfg={'mode': 'whole', 'scales': (0.5, 1.0), 'flip': True})
    assert (
        count_scores(scaled, batches(2), True, 10)[0].pixels
        == count_scores(model_with(), batches(2), True, 10)[0].pixels
    )


def test_padding_of_the_preprocessor_is_not_counted() -> None:
    model, found = model_with(), []
    for test_cfg in (None, {'size_divisor': 64}):
        model.data_preprocessor.test_cfg = test_cfg
        counts, _ = count_scores(model, batches(), True, bins=1000)
        data = model.data_preprocessor(batches(1)[0])
        final = find_groups(model, data['inputs'], data['data_samples'][0])[-1]
        found.append((data['inputs'].shape[-1], counts, final.labels))
    (narrow, plain, groups), (wide, padded, padded_groups) = found
    assert (narrow, wide) == (56, 64)
    for name in ('right', 'wrong', 'truth'):
        np.testing.assert_array_equal(getattr(padded, name), getattr(plain, name))
    np.testing.assert_array_equal(padded_groups, groups)


def test_true_labels_follow_the_size_of_the_input() -> None:
    small = batches(1)
    large = batches(1)
    truth = large[0]['data_samples'][0].gt_sem_seg.data
    large[0]['data_samples'][0].gt_sem_seg = PixelData(
        data=truth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    )
    found = [count_scores(model_with(), given, True, 10)[0] for given in (small, large)]
    assert (found[0].right == found[1].right).all()
    assert found[0].pixels == found[1].pixels


def test_thresholds_without_masks_need_no_labels() -> None:
    unlabelled = batches()
    for batch in unlabelled:
        del batch['data_samples'][0].gt_sem_seg
    model = model_with({'class_topk': 1})
    found = calibrate_without_masks(model, unlabelled, quantile=0.9, max_prior=0.5, min_groups=5)
    assert found.fit['method'] == 'images without masks'
    assert set(found.per_class) == {'cat', 'dog', 'tree'}

    # Written out: scores of all classes, whatever may be named, on images that are sure enough.
    counts, _ = count_absent(model, unlabelled, 0.5, bins=1000)
    expected: list[list[float]] = [[], [], []]
    with torch.no_grad():
        for batch in unlabelled:
            inputs = model.data_preprocessor(batch)['inputs']
            prior = model.image_context(inputs)[0]
            logits = model.group_predictions(inputs)
            table = (logits.scale * logits.group_embeddings @ model.text_embeddings.embeddings.T).softmax(-1)
            for k in range(3):
                if prior[k] < 0.5:
                    expected[k] += table[0, :, k].tolist()
    assert counts.sum(1).tolist() == [len(scores) for scores in expected]
    for k in range(3):
        if len(expected[k]) >= 5:
            share = np.mean(np.array(expected[k]) < found.per_class[('cat', 'dog', 'tree')[k]])
            assert share >= 0.9 - 1e-9


def test_background_words_take_their_pixels_out() -> None:
    plain = count_scores(model_with(), batches(), True, 10)[0]
    worded = count_scores(model_with({'background': {'names': ['sky', 'wall']}}), batches(), True, 10)[0]
    assert worded.pixels == plain.pixels
    assert (worded.right + worded.wrong).sum() < (plain.right + plain.wrong).sum()


def test_other_readouts_and_batches_are_refused() -> None:
    reference = toy_groupvit(readout={'type': 'ovd.ReferenceReadout'}, data_preprocessor=PREPROCESSOR)
    with pytest.raises(ValueError, match='ReferenceReadout'):
        calibrate(reference, batches(), True)
    pair = {
        key: [value for batch in batches(2) for value in batch[key]] for key in ('inputs', 'data_samples')
    }
    with pytest.raises(ValueError, match='unpack'):
        calibrate(model_with(), [pair], True)
    assert isinstance(model_with().readout, SoftReadout)
    assert calibrate(model_with(), batches(), True, limit=2).fit['images'] == 2
