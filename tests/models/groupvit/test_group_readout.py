"""GroupViT's readout: groups to pixels, for any words, with and without background."""

import math
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from ovd.checkpoints.loading import load_into, load_tensors
from ovd.conversion.groupvit import convert_groupvit
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.layers.score_maps import argmax_labels, materialize
from ovd.models.groupvit.grouping import GroupingOutput
from ovd.models.groupvit.readout import (
    GroupPredictions,
    GroupReadout,
    GroupScores,
    ReferenceReadout,
    SoftReadout,
    compose_maps,
    group_labels,
)
from ovd.models.groupvit.thresholds import Thresholds
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path
from tests.toys.groupvit import reference_config

GOLDEN = 'goldens/groupvit/nvlabs_a_io.npz'


def words(matrix: Tensor, names: list[str] | None = None, fingerprint: str = '') -> TextEmbeddings:
    names = names or [f'class {index}' for index in range(len(matrix))]
    return TextEmbeddings(F.normalize(matrix.float(), dim=-1), Vocabulary(names), (), fingerprint)


def with_words(readout: Any, matrix: Tensor, names: list[str] | None = None, embed: Any = None) -> Any:
    readout.use_text_embeddings(words(matrix, names), embed)
    return readout


def toy(
    groups: int = 3,
    classes: int = 7,
    dim: int = 16,
    batch: int = 1,
    grid: tuple[int, int] = (4, 5),
    scale: float = 20.0,
    seed: int = 0,
) -> tuple[GroupPredictions, Tensor]:
    """Random predictions of a two-stage model and random class vectors."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    patches = grid[0] * grid[1]
    soft = ((3 * randn(batch, 6, patches)).softmax(1), (3 * randn(batch, groups, 6)).softmax(1))
    output = GroupingOutput(randn(batch, groups, dim), randn(batch, dim), soft, soft, grid)
    text = F.normalize(randn(classes, dim), dim=-1)
    embeddings = F.normalize(randn(batch, groups, dim), dim=-1), F.normalize(randn(batch, dim), dim=-1)
    return GroupPredictions(output, *embeddings, torch.tensor(scale)), text


def from_tables(shares: Tensor, cosines: Tensor, image: Tensor, scale: float = 1.0) -> GroupPredictions:
    """Predictions whose cosines with the unit vectors of the axes are given.

    Args:
        shares: [G, h, w], of one stage.
        cosines: [G, K], rows of length at most one; a last axis makes them unit vectors.
        image: [K].
    """

    def unit(rows: Tensor) -> Tensor:
        rest = (1 - rows.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
        return torch.cat([rows, rest], dim=-1)

    grid = (shares.shape[1], shares.shape[2])
    soft = (shares.flatten(1)[None],)
    output = GroupingOutput(torch.zeros(1, len(shares), 1), torch.zeros(1, 1), soft, soft, grid)
    return GroupPredictions(output, unit(cosines)[None], unit(image[None]), torch.tensor(scale))


def axes(count: int) -> Tensor:
    """[K, K + 1], class k is axis k."""
    return torch.eye(count, count + 1)


# A second implementation, pixel by pixel in plain Python.
def plain_reference(
    predictions: GroupPredictions, text: Tensor, size: tuple[int, int], threshold: float | None, topk: int = 5
) -> Tensor:
    scale = float(predictions.scale)
    soft = predictions.output.soft
    composed = soft[0][0].T.double()
    for assignment in soft[1:]:
        composed = composed @ assignment[0].T.double()
    maps = composed.T.reshape(1, -1, *predictions.output.grid)
    owner = F.interpolate(maps, size=size, mode='bilinear', align_corners=False)[0].argmax(0)
    logits = scale * predictions.group_embeddings[0].double() @ text.double().T
    image = scale * predictions.image_embeddings[0].double() @ text.double().T
    kept = set(sorted(range(len(text)), key=lambda k: -float(image[k]))[:topk])

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        total = sum(math.exp(value - top) for value in row)
        return [math.exp(value - top) / total for value in row]

    table = []
    for row in logits.tolist():
        before = softmax(row)
        after = softmax([value if k in kept else -math.inf for k, value in enumerate(row)])
        table.append([a * b for a, b in zip(before, after)])
    if threshold is not None:
        limit = min(threshold, max(max(row) for row in table))
        table = [[*row, 1.0 if max(row) < limit else 0.0] for row in table]
    pixels = [[table[group] for group in line] for line in owner.tolist()]
    return torch.tensor(pixels).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize('threshold', [None, 0.2, 0.95])
@pytest.mark.parametrize('size', [(32, 40), (33, 47), (4, 5)])
def test_the_reference_equals_a_plain_second_implementation(
    threshold: float | None, size: tuple[int, int]
) -> None:
    for seed in range(3):
        predictions, text = toy(seed=seed)
        readout = with_words(ReferenceReadout(threshold), text)
        scores = materialize(readout(predictions, size))
        expected = plain_reference(predictions, text, size, threshold)
        same = (scores - expected).abs().amax(1) < 1e-5
        assert same.float().mean() > 0.999  # a pixel between two groups may round to either
        assert readout.with_background is (threshold is not None)


def test_two_groups_and_three_classes_by_hand() -> None:
    # Left column: group 0, right column: group 1. Scale 1, cosines chosen so that the softmaxes are simple.
    log2 = math.log(2)
    shares = torch.tensor([[[0.9, 0.2]], [[0.1, 0.8]]])
    cosines = torch.tensor([[log2, 0.0, 0.0], [0.0, 0.0, log2]])
    predictions = from_tables(shares, cosines, torch.tensor([0.5, 0.4, 0.3]))
    # Rows of exp: (2, 1, 1) and (1, 1, 2). The image keeps classes 0 and 1.
    before = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    after = torch.tensor([[2 / 3, 1 / 3, 0.0], [0.5, 0.5, 0.0]])
    readout = with_words(ReferenceReadout(class_topk=2), axes(3))
    table = readout.group_table(predictions)[0]
    assert torch.allclose(table, before * after, atol=1e-6)
    pixels = materialize(readout(predictions, (1, 2)))[0, :, 0].T
    assert torch.allclose(pixels, table)

    # Best scores of the groups are 1/3 and 1/8. Background last, decided strictly below the threshold.
    for threshold, expected in [(0.1, [0, 0]), (0.2, [0, 1]), (0.95, [0, 1])]:
        readout = with_words(ReferenceReadout(threshold, class_topk=2), axes(3))
        assert readout.group_table(predictions)[0, :, 3].tolist() == expected

    soft = with_words(SoftReadout(class_topk=2, unit_votes=False), axes(3))
    pixels = materialize(soft(predictions, (1, 2)))[0, :, 0].T
    assert torch.allclose(pixels, shares[:, 0].T @ (before * after), atol=1e-6)
    single = with_words(SoftReadout(affinity='softmax', class_topk=None, unit_votes=False), axes(3))
    assert torch.allclose(single.group_table(predictions)[0], before, atol=1e-6)


@pytest.mark.parametrize('keep_best', [False, True])
def test_a_score_equal_to_the_threshold_stays_foreground(keep_best: bool) -> None:
    shares = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    predictions = from_tables(shares, torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]) / 2, torch.zeros(2), 2.0)
    best = 0.75  # of group 0; group 1 has 0.5
    for threshold, lost in [(0.5, [0, 0]), (0.75, [0, 1]), (0.76, [1 - keep_best, 1])]:
        background = {'threshold': threshold, 'keep_best': keep_best}
        readout = with_words(SoftReadout(affinity='softmax', class_topk=None, background=background), axes(2))
        table = readout.group_table(predictions)[0]
        assert table[:, 2].tolist() == lost, threshold
        assert torch.allclose(readout.group_scores(predictions)[0].max(), torch.tensor(best))


def test_each_image_of_a_batch_is_read_by_itself() -> None:
    predictions, text = toy(batch=3, seed=5)
    for readout in (
        with_words(ReferenceReadout(0.5), text),
        with_words(SoftReadout(background={'threshold': 0.5, 'keep_best': True}), text),
    ):
        whole = readout(predictions, (9, 11))
        for index in range(3):
            part = GroupPredictions(
                GroupingOutput(
                    *(tensor[index : index + 1] for tensor in predictions.output[:2]),
                    *(tuple(map_[index : index + 1] for map_ in maps) for maps in predictions.output[2:4]),
                    predictions.output.grid,
                ),
                predictions.group_embeddings[index : index + 1],
                predictions.image_embeddings[index : index + 1],
                predictions.scale,
            )
            alone = materialize(readout(part, (9, 11)))
            assert torch.allclose(materialize(whole)[index], alone[0], atol=1e-6)
            assert torch.allclose(materialize(whole.images(index, index + 1)), alone, atol=1e-6)


@pytest.mark.parametrize('one_hot', [False, True])
def test_strips_and_class_ranges_are_parts_of_the_whole(one_hot: bool) -> None:
    predictions, text = toy(classes=9, batch=2, seed=2)
    readout = with_words(SoftReadout(one_hot=one_hot, class_topk=None), text)
    maps = readout(predictions, (13, 17))
    assert isinstance(maps, GroupScores)
    assert maps.shape == (2, 9, 13, 17)
    whole = maps.rows(0, 13)
    dense = F.interpolate(compose_maps(predictions.output), size=(13, 17), mode='bilinear')
    if one_hot:
        dense = F.one_hot(dense.argmax(1), 3).permute(0, 3, 1, 2).float()
    assert torch.allclose(whole, torch.einsum('bghw,bgk->bkhw', dense, maps.table), atol=1e-5)
    for start, stop in [(0, 1), (4, 9), (12, 13)]:
        for channels in (slice(0, 4), slice(4, 9), slice(None)):
            assert torch.allclose(maps.rows(start, stop, channels), whole[:, channels, start:stop], atol=1e-6)
    assert torch.equal(argmax_labels(maps, 1 << 22), argmax_labels(maps, 300))


def test_pixel_shares_are_distributions_and_compose_over_stages() -> None:
    predictions, _ = toy()
    output = predictions.output
    final = compose_maps(output)
    assert final.shape == (1, 3, 4, 5)
    assert torch.allclose(final.sum(1), torch.ones(1, 4, 5))
    assert torch.equal(compose_maps(output, 1), output.soft[0].unflatten(-1, (4, 5)))
    three = output._replace(soft=(*output.soft, torch.rand(1, 2, 3).softmax(1)))
    by_hand = torch.einsum('bsp,bts,but->bup', *three.soft)
    assert torch.allclose(compose_maps(three).flatten(2), by_hand, atol=1e-6)


def test_group_labels_drop_the_padding_and_follow_the_original_size() -> None:
    # 2 x 3 patches of 4 pixels, an image of 7 x 9 in an input of 8 x 12; each patch is its own group.
    shares = torch.eye(6).reshape(1, 6, 6)
    output = GroupingOutput(torch.zeros(1, 6, 1), torch.zeros(1, 1), (shares,), (shares,), (2, 3))
    labels = group_labels(output, (8, 12), (7, 9))
    assert labels.shape == (1, 7, 9)
    expected = torch.tensor([[0, 1, 2], [3, 4, 5]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(labels[0], expected[:7, :9])
    assert group_labels(output, (8, 12), (7, 9), (14, 18)).shape == (1, 14, 18)
    assert torch.equal(group_labels(output, (8, 12))[0], expected)


READOUTS = [
    lambda: ReferenceReadout(0.6),
    lambda: ReferenceReadout(),
    lambda: SoftReadout(background={'threshold': 0.4}),
    lambda: SoftReadout(affinity='softmax', class_topk=None, unit_votes=False),
]


@pytest.mark.parametrize('build', [READOUTS[0], READOUTS[2]])
def test_without_background_every_pixel_takes_its_best_class(build: Any) -> None:
    predictions, text = toy(batch=2, seed=3)
    readout = with_words(build(), text)
    shown = argmax_labels(readout(predictions, (8, 10)))
    hidden = readout(predictions, (8, 10), background=False)
    assert hidden.channels == 8
    labels = argmax_labels(hidden)
    assert (shown == 7).any()
    assert not (labels == 7).any()
    assert (labels < 7).float().mean() == 1
    assert len(labels[shown == 7].unique()) > 1


@pytest.mark.parametrize('build', READOUTS)
def test_the_order_of_the_words_does_not_matter(build: Any) -> None:
    predictions, text = toy(batch=2, seed=3)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    plain = with_words(build(), text).group_table(predictions)
    mixed = with_words(build(), text[order]).group_table(predictions)
    assert torch.allclose(mixed[..., :7], plain[..., order], atol=1e-6)
    assert torch.equal(mixed[..., 7:], plain[..., 7:])


def test_a_repeated_or_added_word_changes_only_what_a_softmax_must() -> None:
    predictions, text = toy(seed=4)
    single = SoftReadout(affinity='softmax', class_topk=None, unit_votes=False)
    plain = with_words(single, text).group_table(predictions)
    twice = with_words(single, torch.cat([text, text[:1]])).group_table(predictions)
    assert torch.equal(twice[..., 0], twice[..., 7])
    added, _ = toy(seed=9)
    more = with_words(single, torch.cat([text, added.group_embeddings[0, :1]])).group_table(predictions)
    for changed in (twice, more):  # old classes keep their ratios
        ratio = changed[..., :7] / plain
        assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4)
        assert (ratio <= 1).all()


def test_one_class_and_fewer_classes_than_may_be_named() -> None:
    predictions, text = toy()
    for readout in (ReferenceReadout(0.95), SoftReadout(background={'threshold': 0.95})):
        table = with_words(readout, text[:1]).group_table(predictions)
        assert torch.equal(table, torch.tensor([1.0, 0.0]).expand(1, 3, 2))  # nothing to compete with
    assert with_words(ReferenceReadout(), text[:3]).group_table(predictions).min() > 0


def test_ten_thousand_words_make_no_map() -> None:
    predictions, text = toy(classes=10_000, dim=32)
    for readout in (ReferenceReadout(0.9), SoftReadout(background={'threshold': 0.9})):
        maps = with_words(readout, text)(predictions, (60, 70))
        assert isinstance(maps, GroupScores)
        assert maps.table.shape == (1, 3, 10_001)
        maps.rows = Mock(side_effect=maps.rows)  # type: ignore[method-assign]
        labels = argmax_labels(maps, 1 << 16)
        for call in maps.rows.call_args_list:
            start, stop, channels = call.args
            assert (stop - start) * 70 * (channels.stop - channels.start) <= 1 << 16
        assert labels.shape == (1, 60, 70)
        assert int(labels.max()) <= 10_000


def test_only_the_most_probable_classes_of_the_whole_image_are_named() -> None:
    predictions, text = toy(seed=1)
    readout = with_words(SoftReadout(class_topk=2, unit_votes=False), text)
    assert readout.presence_side == 224
    own = readout.group_table(predictions)
    assert ((own > 0).sum(-1) == 2).all()
    prior = torch.eye(7)[[3]] + 0.5 * torch.eye(7)[[5]]
    given = readout.group_table(predictions, prior)
    assert (given[..., [3, 5]] > 0).all()
    assert ((given > 0).sum(-1) == 2).all()
    assert SoftReadout(presence='window').presence_side is None
    assert SoftReadout(class_topk=None).presence_side is None
    assert torch.allclose(readout.image_prior(predictions).sum(-1), torch.ones(1))


def test_unit_votes_put_outlines_where_the_shares_are_equal() -> None:
    shares = torch.tensor([[[0.6, 0.4]], [[0.4, 0.6]]])  # group 0 is surer of class 0 than group 1 of class 1
    predictions = from_tables(shares, torch.tensor([[0.9, 0.0], [0.0, 0.2]]), torch.zeros(2), 5.0)
    for unit_votes, expected in [(True, [0, 1]), (False, [0, 0])]:
        readout = with_words(SoftReadout(unit_votes=unit_votes), axes(2))
        assert argmax_labels(readout(predictions, (1, 2)))[0, 0].tolist() == expected


def embedder(table: dict[str, Tensor]) -> Any:
    def embed(vocabulary: Vocabulary) -> TextEmbeddings:
        return words(torch.stack([table[name] for name in vocabulary]), list(vocabulary))

    return embed


def test_words_for_background_win_where_they_fit_best() -> None:
    shares = torch.eye(3)[:, None]
    cosines = torch.tensor([[0.8, 0.0, 0.1], [0.0, 0.7, 0.2], [0.1, 0.0, 0.9]])
    predictions = from_tables(shares, cosines, torch.tensor([0.5, 0.4, 0.0]), 10.0)
    names, text = ['cat', 'dog'], axes(3)[:2]
    embed = embedder({'sky': axes(3)[2], 'Dog': axes(3)[1]})

    plain = with_words(SoftReadout(), text, names)
    assert argmax_labels(plain(predictions, (1, 3)))[0, 0].tolist()[:2] == [0, 1]
    background = {'names': ['Dog', 'sky']}  # a class of the vocabulary is no background
    prompted = with_words(SoftReadout(background=background), text, names, embed)
    assert prompted.with_background
    assert argmax_labels(prompted(predictions, (1, 3)))[0, 0].tolist() == [0, 1, 2]
    only = with_words(SoftReadout(background={'names': ['sky'], 'threshold': 1.0}), text, names, embed)
    assert argmax_labels(only(predictions, (1, 3)))[0, 0].tolist() == [2, 2, 2]

    with pytest.raises(ValueError, match='sky'):
        with_words(SoftReadout(background=background), text, names)
    nothing_left = with_words(SoftReadout(background={'names': ['cat']}), text, names)
    assert nothing_left.group_table(predictions).shape == (1, 3, 3)


def test_a_single_word_without_rivals_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    _, text = toy()
    embed = embedder({'sky': text[1]})
    for background, is_alone in (
        (None, True),
        ({'threshold': 0.95}, True),
        ({'threshold': 0.95, 'names': ['sky']}, False),
        ({'learned': True}, False),
    ):
        caplog.clear()
        readout = with_words(SoftReadout(background=background), text[:1], ['cat'], embed)
        assert ("every group is 'cat'" in caplog.text) is is_alone
        caplog.clear()
        with_words(readout, text[:2], ['cat', 'dog'], embed)
        assert not caplog.text


def test_a_learned_background_vector_competes_with_the_classes() -> None:
    shares = torch.eye(3)[:, None]
    cosines = torch.tensor([[0.8, 0.0, 0.1], [0.0, 0.7, 0.2], [0.1, 0.0, 0.9]])
    predictions = from_tables(shares, cosines, torch.tensor([0.5, 0.4, 0.0]), 10.0)
    readout = with_words(SoftReadout(background={'learned': True}), axes(3)[:2])
    labels = argmax_labels(readout(predictions._replace(background=axes(3)[2]), (1, 3)))
    assert labels[0, 0].tolist() == [0, 1, 2]


def test_tokens_can_be_named_by_themselves() -> None:
    predictions, text = toy(grid=(4, 5), classes=6, seed=7)
    tokens = F.normalize(torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    given = predictions._replace(token_embeddings=tokens)
    readout = with_words(SoftReadout(level='tokens', class_topk=None, unit_votes=False), text)
    scores = (20 * tokens[0] @ text.T).softmax(-1).square()
    assert torch.allclose(readout.group_table(given)[0], scores, atol=1e-6)
    expected = F.interpolate(scores.T.reshape(1, 6, 4, 5), size=(9, 11), mode='bilinear')
    assert torch.allclose(materialize(readout(given, (9, 11))), expected, atol=1e-6)
    assert readout.assigned_rows(given, (8, 10), (8, 10))[0, ::2, ::2].flatten().tolist() == list(range(20))
    assert readout.assigned_rows(given, (8, 10), (7, 9)).shape == (1, 7, 9)
    with pytest.raises(ValueError, match='tokens'):
        readout(predictions, (9, 11))


def test_shares_can_come_from_the_assignments_of_the_features() -> None:
    predictions, text = toy(seed=6)
    output = predictions.output
    hard = tuple(
        torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0) for soft in output.soft
    )
    given = predictions._replace(output=output._replace(hard=hard))
    maps = compose_maps(given.output, assignment='hard')
    assert set(maps.unique().tolist()) <= {0.0, 1.0}
    readout = with_words(SoftReadout(assignment='hard'), text)
    dense = torch.einsum('bghw,bgk->bkhw', maps, readout.group_table(given))
    assert torch.allclose(materialize(readout(given, (4, 5))), dense)
    assert torch.equal(readout.assigned_rows(given, (4, 5), (4, 5)), maps.argmax(1))


def test_each_class_has_its_own_threshold(tmp_path: Any) -> None:
    shares = torch.eye(2)[:, None]
    predictions = from_tables(shares, torch.tensor([[0.4, 0.0], [0.0, 0.4]]), torch.zeros(2), 5.0)
    score = math.exp(2) / (math.exp(2) + 1)
    path = tmp_path / 'thresholds.json'
    Thresholds(0.1, {'dog': score + 0.01, 'cat': score - 0.01, 'fish': 1.0}).save(path)
    for names, expected in [(['cat', 'dog'], [0, 2]), (['dog', 'cat'], [2, 1])]:
        readout = SoftReadout(affinity='softmax', background={'thresholds': path})
        with_words(readout, axes(2), names)
        assert argmax_labels(readout(predictions, (1, 2)))[0, 0].tolist() == expected
    with pytest.raises(ValueError, match='cow'):
        with_words(SoftReadout(background={'thresholds': path}), axes(2), ['cat', 'cow'])
    overall = SoftReadout(affinity='softmax', background={'thresholds': path, 'fallback': 'overall'})
    with_words(overall, axes(2), ['dog', 'cow'])
    assert argmax_labels(overall(predictions, (1, 2)))[0, 0].tolist() == [2, 1]


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: SoftReadout(affinity='cosine'), 'affinity'),
        (lambda: SoftReadout(presence='batch'), 'presence'),
        (lambda: SoftReadout(assignment='both'), 'assignment'),
        (lambda: SoftReadout(level='pixels'), 'level'),
        (lambda: SoftReadout(background={}), 'learned=True'),
        (lambda: SoftReadout(background={'threshold': 0.5, 'thresholds': 'x.json'}), r'x\.json'),
        (lambda: ReferenceReadout().group_table(toy()[0]), 'vocabulary'),
    ],
)
def test_mistakes_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_scores_are_float32_whatever_the_encoder_computes_in() -> None:
    predictions, text = toy()
    half = predictions._replace(
        group_embeddings=predictions.group_embeddings.bfloat16(),
        image_embeddings=predictions.image_embeddings.bfloat16(),
    )
    readout = with_words(SoftReadout(background={'threshold': 0.3}), text)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores = materialize(readout(half, (8, 8)))
    assert scores.dtype == torch.float32


# Outputs of the released code, on random weights.
def golden_predictions(arrays: Any, image: str) -> GroupPredictions:
    """The recorded encoder outputs of one image; embeddings are recorded for 'image' only."""
    prefix = '' if image == 'image' else image.removeprefix('image_') + '.'
    soft = tuple(torch.from_numpy(arrays[f'{prefix}attn{stage}_soft'])[:1, 0] for stage in (0, 1))
    height, width = arrays[image].shape[2:]
    grid = (height // 4, width // 4)
    output = GroupingOutput(torch.zeros(1, 4, 48), torch.zeros(1, 48), soft, soft, grid)
    groups = F.normalize(torch.from_numpy(arrays['image_feat'])[:1], dim=-1)
    pooled = F.normalize(torch.from_numpy(arrays['image_x'])[:1], dim=-1)
    return GroupPredictions(output, groups, pooled, torch.tensor(float(arrays['logit_scale_effective'])))


def load_golden() -> dict[str, Any]:
    with np.load(shared_path(GOLDEN)) as file:
        return dict(file)


def golden_readout(arrays: Any, threshold: float | None) -> GroupReadout:
    return with_words(ReferenceReadout(threshold), torch.from_numpy(arrays['class_embedding']))


@pytest.mark.parametrize('image', ['image', 'image_hi', 'image_odd', 'image_tall'])
def test_golden_group_maps(image: str) -> None:
    arrays = load_golden()
    output = golden_predictions(arrays, image).output
    for stage in (0, 1):
        expected = torch.from_numpy(arrays[f'seg.{image}.group_map{stage}']).permute(0, 3, 1, 2)
        size = tuple(arrays[image].shape[2:])
        maps = F.interpolate(compose_maps(output, stage + 1), size=size, mode='bilinear')
        assert torch.allclose(maps, expected, atol=1e-5)
        margin = expected.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
        labels = group_labels(output, size, stages=stage + 1)
        clear = margin > 1e-4
        assert torch.equal(labels[clear], expected.argmax(1)[clear])


def test_golden_group_scores() -> None:
    arrays = load_golden()
    predictions = golden_predictions(arrays, 'image')
    readout = golden_readout(arrays, None)
    prior = readout.image_prior(predictions)
    assert torch.allclose(prior, torch.from_numpy(arrays['seg.image.image_class_prob']), atol=1e-5)
    assert torch.allclose(
        readout.group_table(predictions)[0], torch.from_numpy(arrays['seg.image.group_affinity']), atol=1e-5
    )


@pytest.mark.parametrize(('tag', 'threshold'), [('nobg', None), ('bg95', 0.95), ('bg35', 0.35)])
def test_golden_scores_of_the_recorded_image(tag: str, threshold: float | None) -> None:
    arrays = load_golden()
    readout = golden_readout(arrays, threshold)
    expected = torch.from_numpy(arrays[f'seg.image.{tag}.pred_logits'])
    if threshold is not None:
        expected = expected.roll(-1, dims=1)  # ours has background last
    scores = materialize(readout(golden_predictions(arrays, 'image'), (32, 32)))
    clear = torch.from_numpy(arrays['seg.image.group_margin'])[0] > 1e-4
    assert (~clear).sum() <= 1
    assert torch.allclose(scores[..., clear], expected[..., clear], atol=1e-5)


def golden_model(threshold: float | None, **test_cfg: Any) -> Any:
    """The released model with the recorded class vectors."""
    converted = convert_groupvit(load_tensors(shared_path('goldens/groupvit/nvlabs_a_state.safetensors')))
    readout = {'type': 'ovd.ReferenceReadout', 'background': threshold}
    model = MODELS.build(reference_config(readout=readout, test_cfg=test_cfg)).eval()
    load_into(model, converted.tensors)
    model.set_vocabulary(words(torch.from_numpy(load_golden()['class_embedding'])))
    return model


def sample_of(size: tuple[int, int]) -> SegDataSample:
    return SegDataSample(metainfo={'ori_shape': size})


TAGS = [('nobg', None), ('bg95', 0.95), ('bg35', 0.35)]


@pytest.mark.parametrize(('tag', 'threshold'), TAGS)
@torch.no_grad()
def test_golden_segmentation_of_whole_images(tag: str, threshold: float | None) -> None:
    arrays = load_golden()
    model = golden_model(threshold)
    for image in ('image', 'image_hi', 'image_odd', 'image_tall'):
        inputs = torch.from_numpy(arrays[image])[:1]
        sample = sample_of(tuple(inputs.shape[2:]))
        scores = materialize(model.inference_scores(inputs, [sample])[0])
        expected = torch.from_numpy(arrays[f'seg.{image}.{tag}.pred_logits'])
        expected = expected if threshold is None else expected.roll(-1, dims=1)
        clear = torch.from_numpy(arrays[f'seg.{image}.group_margin'])[0] > 1e-4
        assert (~clear).sum() <= 1
        assert torch.allclose(scores[..., clear], expected[..., clear], atol=1e-4)
        labels = model.predict(inputs, [sample])[0].pred_sem_seg.data
        assert torch.equal(labels[:, clear], expected.argmax(1)[:, clear])


@pytest.mark.parametrize(('tag', 'threshold'), TAGS)
@torch.no_grad()
def test_golden_segmentation_in_windows(tag: str, threshold: float | None) -> None:
    arrays = load_golden()
    model = golden_model(threshold, mode='slide', crop_size=32, stride=16)
    inputs = torch.from_numpy(arrays['image_slide'])
    scores = materialize(model.inference_scores(inputs, [sample_of((48, 76))])[0])
    expected = torch.from_numpy(arrays[f'seg.slide.{tag}.logits'])
    expected = expected if threshold is None else expected.roll(-1, dims=1)
    differs = (scores - expected).abs().amax(1)[0] > 1e-4
    assert differs.sum() <= 2 * 8  # windows have at most two pixels between two groups

    size = tuple(arrays['seg.slide.ori_shape'].tolist())
    labels = model.predict(inputs, [sample_of(size)])[0].pred_sem_seg.data[0]
    channels = torch.from_numpy(arrays[f'seg.slide.{tag}.pred'])[0].long()
    theirs = channels if threshold is None else (channels - 1) % 8
    assert (labels != theirs).sum() <= differs.sum()
