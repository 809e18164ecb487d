"""Score maps: strips equal the whole bit for bit, and the whole equals torch's own operators."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.layers.score_maps import (
    ChannelScores,
    CutScores,
    FlippedScores,
    ResizedScores,
    ScoreMaps,
    TensorScores,
    argmax_labels,
    chunks,
    materialize,
    resized,
)
from ovd.layers.score_sums import ScoreSum, SummedScores, WindowedScores


class CountingScores(TensorScores):
    """A finished map that keeps the largest number of scores anyone asked for at once."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__(scores)
        self.largest = 0

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        strip = super().rows(start, stop, channels)
        self.largest = max(self.largest, strip.numel())
        return strip


def random_sizes(count: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs of grids from 1 to 40 pixels a side: up, down, odd, one pixel, mixed."""
    generator = torch.Generator().manual_seed(3)
    sides = torch.randint(1, 41, (count, 4), generator=generator).tolist()
    fixed = [((1, 1), (7, 5)), ((5, 7), (1, 1)), ((1, 9), (8, 9)), ((6, 6), (6, 11)), ((2, 3), (2, 3))]
    return fixed + [((a, b), (c, d)) for a, b, c, d in sides]


@pytest.mark.parametrize('align_corners', [False, True])
def test_resizing_equals_torch_on_the_whole(align_corners: bool) -> None:
    for source_size, size in random_sizes(40):
        scores = torch.randn(2, 3, *source_size)
        whole = F.interpolate(scores, size, mode='bilinear', align_corners=align_corners)
        ours = ResizedScores(TensorScores(scores), size, align_corners)
        torch.testing.assert_close(ours.rows(0, size[0]), whole, atol=2e-6, rtol=0)
        assert torch.equal(argmax_labels(ours), whole.argmax(1)), (source_size, size)


@pytest.mark.parametrize('align_corners', [False, True])
def test_a_strip_is_the_same_rows_of_the_whole_bit_for_bit(align_corners: bool) -> None:
    for source_size, size in random_sizes(10):
        ours = ResizedScores(TensorScores(torch.randn(1, 4, *source_size)), size, align_corners)
        whole = ours.rows(0, size[0])
        for start, stop in itertools.combinations(range(size[0] + 1), 2):
            if stop - start <= 3 or start == 0:
                assert torch.equal(ours.rows(start, stop, slice(1, 3)), whole[:, 1:3, start:stop])


def test_double_precision_is_kept_and_half_is_widened() -> None:
    scores = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    whole = F.interpolate(scores, (11, 9), mode='bilinear', align_corners=True)
    torch.testing.assert_close(ResizedScores(TensorScores(scores), (11, 9), True).rows(0, 11), whole)
    half = ResizedScores(TensorScores(scores.half()), (11, 9), True)
    assert half.dtype == half.rows(0, 3).dtype == torch.float32
    torch.testing.assert_close(half.rows(0, 11).double(), whole, atol=2e-3, rtol=0)


def test_resizing_to_the_same_size_is_the_source() -> None:
    source = TensorScores(torch.randn(1, 2, 5, 6))
    assert resized(source, (5, 6), True) is source
    assert resized(source, (5, 7), True).size == (5, 7)


def test_gradients_of_resizing_equal_torch() -> None:
    scores = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, 9, 7, dtype=torch.float64)
    (ResizedScores(TensorScores(scores), (9, 7), False).rows(0, 9) * weight).sum().backward()
    ours, scores.grad = scores.grad, None
    (F.interpolate(scores, (9, 7), mode='bilinear', align_corners=False) * weight).sum().backward()
    torch.testing.assert_close(ours, scores.grad)


def nested(scores: Tensor) -> ScoreMaps:
    """One of everything, as multi-scale inference stacks them."""
    half = scores.shape[1] // 2
    cut = CutScores(TensorScores(scores[:, :half]), (8, 9), top=1, left=2)
    other = CutScores(FlippedScores(TensorScores(scores[:, half : 2 * half])), (8, 9))
    total = SummedScores([cut, FlippedScores(other, 'vertical')])
    windows = WindowedScores([(total, 0, 0), (cut, 0, 4), (other, 3, 0), (total, 3, 4)], (11, 13))
    return ResizedScores(windows, (17, 10), align_corners=True)


def test_nested_wrappers_equal_plain_torch() -> None:
    scores = torch.randn(2, 6, 10, 12)
    cut = scores[:, :3, 1:9, 2:11]
    other = scores[:, 3:].flip(3)[:, :, :8, :9]
    total = cut + other.flip(2)
    grid, counts = torch.zeros(2, 3, 11, 13), torch.zeros(11, 13)
    for window, top, left in [(total, 0, 0), (cut, 0, 4), (other, 3, 0), (total, 3, 4)]:
        grid[:, :, top : top + 8, left : left + 9] += window
        counts[top : top + 8, left : left + 9] += 1
    expected = F.interpolate(grid / counts, (17, 10), mode='bilinear', align_corners=True)
    maps = nested(scores)
    assert maps.shape == (2, 3, 17, 10)
    torch.testing.assert_close(materialize(maps), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize('max_elements', [1, 7, 100, 1000, 1 << 22])
def test_chunks_change_nothing(max_elements: int) -> None:
    maps = nested(torch.randn(2, 140, 10, 12))
    whole = maps.rows(0, 17)
    assert torch.equal(argmax_labels(maps, max_elements), whole.argmax(1))
    assert torch.equal(materialize(maps, max_elements), whole)


def test_images_are_those_of_the_batch() -> None:
    maps = nested(torch.randn(3, 6, 10, 12))
    whole = maps.rows(0, 17)
    for start, stop in [(0, 1), (1, 3), (2, 3), (0, 3)]:
        part = maps.images(start, stop)
        assert part.batch == stop - start
        assert torch.equal(part.rows(2, 9), whole[start:stop, :, 2:9])


def test_images_of_a_source_that_only_knows_rows() -> None:
    class Plain(ScoreMaps):
        def __init__(self, scores: Tensor) -> None:
            self._like(TensorScores(scores))
            self.scores = scores

        def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
            return self.scores[:, channels, start:stop]

    scores = torch.randn(4, 2, 3, 3)
    part = Plain(scores).images(1, 4)
    assert torch.equal(part.rows(0, 3), scores[1:])
    assert torch.equal(part.images(1, 2).rows(1, 2), scores[2:3, :, 1:2])


def test_dropping_the_background() -> None:
    scores = torch.randn(1, 4, 3, 3)
    kept = ChannelScores(TensorScores(scores), 3)
    assert torch.equal(kept.rows(0, 3), scores[:, :3])
    assert torch.equal(kept.rows(0, 3, slice(2, 9)), scores[:, 2:3])
    assert torch.equal(argmax_labels(kept, 1), scores[:, :3].argmax(1))


def test_of_equal_scores_the_lowest_class_wins_in_every_chunking() -> None:
    scores = torch.randint(0, 3, (2, 90, 6, 7)).float()
    for max_elements in (1, 3, 50, 10000):
        assert torch.equal(argmax_labels(TensorScores(scores), max_elements), scores.argmax(1))
    assert (argmax_labels(TensorScores(torch.zeros(1, 300, 2, 2)), 4) == 0).all()


def test_infinite_and_undefined_scores_are_chunked_as_torch_orders_them() -> None:
    scores = torch.randn(1, 70, 5, 5)
    scores[:, 3] = float('-inf')
    scores[:, 40, 2:] = float('inf')
    scores[:, 50, 1] = scores[:, 65, 1] = float('nan')
    for max_elements in (1, 40, 10000):
        assert torch.equal(argmax_labels(TensorScores(scores), max_elements), scores.argmax(1))


@pytest.mark.parametrize('channels', [1, 2, 256, 1000, 40000])
def test_any_number_of_classes(channels: int) -> None:
    """One class is class 0; beyond 255 the index is not cut."""
    scores = torch.randn(1, channels, 2, 3)
    scores[0, channels - 1, 1, 2] = 100
    labels = argmax_labels(TensorScores(scores), 500)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, scores.argmax(1))
    assert labels[0, 1, 2] == channels - 1


def test_permuting_classes_permutes_labels_and_a_new_class_leaves_scores_alone() -> None:
    scores = torch.randn(1, 9, 8, 8)
    order = torch.randperm(9)
    before = argmax_labels(ResizedScores(TensorScores(scores), (13, 5), False), 40)
    after = argmax_labels(ResizedScores(TensorScores(scores[:, order]), (13, 5), False), 40)
    assert torch.equal(order[after], before)
    more = torch.cat([scores, torch.randn(1, 1, 8, 8)], 1)
    kept = ResizedScores(TensorScores(more), (13, 5), False).rows(0, 13, slice(0, 9))
    assert torch.equal(kept, ResizedScores(TensorScores(scores), (13, 5), False).rows(0, 13))


@pytest.mark.parametrize('shape', [(1, 10000, 30, 40), (2, 5, 100, 100), (3, 1, 1, 1000), (1, 3000, 1, 1)])
@pytest.mark.parametrize('max_elements', [1, 500, 20000, 10**9])
def test_chunks_cover_everything_once_within_the_limit(
    shape: tuple[int, int, int, int], max_elements: int
) -> None:
    scores = TensorScores(torch.zeros(1).expand(shape))
    covered, previous = 0, (-1, -1)
    for start, stop, channels in chunks(scores, max_elements):
        size = shape[0] * (stop - start) * (channels.stop - channels.start) * shape[3]
        assert size <= max(max_elements, shape[0] * shape[3])
        assert (start, channels.start) > previous
        previous, covered = (start, channels.start), covered + size
    assert covered == scores.scores.numel()


def test_scores_in_memory_do_not_grow_with_the_classes() -> None:
    for channels in (150, 10000):
        source = CountingScores(torch.randn(1, channels, 6, 6))
        argmax_labels(ResizedScores(source, (12, 12), True), max_elements=2000)
        assert source.largest <= 2000


@pytest.mark.parametrize('divide', [True, False])
def test_sum_in_memory_equals_deferred_sum_bit_for_bit(divide: bool) -> None:
    sums = [ScoreSum((7, 9), divide, limit, max_elements=50) for limit in (10**6, 0)]
    for top, left in [(0, 0), (0, 4), (2, 0), (2, 4), (1, 1)]:
        window = ResizedScores(TensorScores(torch.randn(2, 40, 3, 3)), (5, 5), False)
        for total in sums:
            total.add(window, top, left)
    eager, deferred = (total.scores() for total in sums)
    assert isinstance(eager, TensorScores)
    assert isinstance(deferred, WindowedScores)
    assert torch.equal(eager.rows(0, 7), deferred.rows(0, 7))


@pytest.mark.parametrize(('parts', 'limit', 'deferred'), [(20, 10, False), (3, 10, True), (20, 0, True)])
def test_a_sum_is_no_larger_than_what_it_is_made_of(parts: int, limit: int, deferred: bool) -> None:
    """252 scores; each window has 36 numbers, however it is wrapped."""
    source = ResizedScores(TensorScores(torch.randn(1, 4, 3, 3)), (6, 6), False)
    window = ChannelScores(FlippedScores(CutScores(source, (5, 5))), 4)
    assert window.kept_elements == 36
    assert SummedScores([window, window]).kept_elements == 72
    total = ScoreSum((7, 9), True, limit, 50, parts)
    for top, left in [(0, 0), (0, 4), (2, 0), (2, 4)]:
        total.add(window, top, left)
    scores = total.scores()
    assert isinstance(scores, WindowedScores if deferred else TensorScores)
    assert scores.kept_elements == (4 * 36 if deferred else 252)


def test_copies_share_no_memory() -> None:
    scores = torch.randn(1, 2, 3, 3)
    materialize(TensorScores(scores)).zero_()
    SummedScores([TensorScores(scores)]).rows(0, 3).zero_()
    assert scores.abs().sum() > 0


SMALL = TensorScores(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: CutScores(SMALL, (3, 3), top=2), r'\(2, 0\)'),
        (lambda: CutScores(SMALL, (3, 3), left=-1), r'\(0, -1\)'),
        (lambda: FlippedScores(SMALL, 'diagonal'), 'diagonal'),
        (lambda: SummedScores([SMALL, CutScores(SMALL, (2, 2))]), r'\(1, 2, 2, 2\)'),
        (lambda: SummedScores([SMALL, ChannelScores(SMALL, 1)]), r'\(1, 1, 4, 4\)'),
        (lambda: WindowedScores([(SMALL, 2, 0)], (4, 4)), r'\(2, 0\)'),
        (lambda: WindowedScores([(SMALL, 0, 0)], (4, 5)), 'row 0, column 4'),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
