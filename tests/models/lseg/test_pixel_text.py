"""Pixels against words by hand: correlation, regularisation blocks, lazy scores, the chunked loss."""

import pytest
import torch
from torch import Tensor

from ovd.layers.score_maps import argmax_labels
from ovd.models.lseg.pixel_loss import pixel_cross_entropy
from ovd.models.lseg.pixel_text import PixelTextHead, PixelTextScores, SpatialRegularization

KINDS = ('depthwise', 'bottleneck')
ACTIVATIONS = {
    'relu': lambda logits: logits.clamp(min=0),
    'lrelu': lambda logits: torch.where(logits > 0, logits, 0.01 * logits),
    'tanh': lambda logits: (logits.exp() - (-logits).exp()) / (logits.exp() + (-logits).exp()),
}


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=1 if len(shape) == 4 else -1)


def block(kind: str, depth: int, activation: str = 'lrelu') -> SpatialRegularization:
    made = SpatialRegularization(kind, depth, activation)
    torch.nn.init.normal_(made.conv.weight, std=0.5)
    return made


def plain(logits: Tensor, made: SpatialRegularization) -> Tensor:
    """The block in loops over pixels and neighbours, without a convolution."""
    weight, bias = made.conv.weight[0, 0], made.conv.bias
    for index in range(made.passes):
        height, width = logits.shape[2:]
        smooth = torch.zeros_like(logits) + bias
        for y in range(height):
            for x in range(width):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            smooth[:, :, y, x] += weight[dy + 1, dx + 1] * logits[:, :, y + dy, x + dx]
        if made.kind == 'bottleneck':
            smooth = smooth + logits.max(1, keepdim=True).values
        logits = smooth
        if index < made.passes - 1:
            logits = ACTIVATIONS[made.activation](logits)
    return logits


def test_logits_are_scaled_cosines() -> None:
    head = PixelTextHead(2, 2, temperature=0.5)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(2)[..., None, None])
        head.project.bias.zero_()
    features = torch.tensor([[3.0, 4.0], [5.0, 0.0]]).T[None, :, None]  # two pixels
    text = torch.tensor([[2.0, 0.0], [0.0, 0.1], [-1.0, 0.0]])  # of any length
    scores = head(features, text)
    assert scores.shape == (1, 3, 1, 2)
    expected = torch.tensor([[0.6, 1.0], [0.8, 0.0], [-0.6, -1.0]]) * 2
    torch.testing.assert_close(scores.rows(0, 1)[0, :, 0], expected)


def test_learned_background_is_the_last_channel_and_trains() -> None:
    head = PixelTextHead(4, 6, with_background=True)
    features, text = torch.randn(2, 4, 3, 5), torch.randn(3, 6)
    scores = head(features, text)
    assert scores.channels == 4
    background = torch.nn.functional.normalize(head.background.detach(), dim=0)
    expected = torch.einsum('bdhw,d->bhw', head.embed(features), background) / 0.07
    torch.testing.assert_close(scores.rows(0, 3, slice(3, 4))[:, 0], expected)
    scores.rows(0, 3).sum().backward()
    assert head.background.grad.abs().sum() > 0


def test_every_image_may_have_its_own_classes() -> None:
    head = PixelTextHead(4, 6)
    features, text = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 6)
    scores = head(features, text)
    for index in range(2):
        alone = head(features[index : index + 1], text[index])
        torch.testing.assert_close(scores.rows(0, 3)[index], alone.rows(0, 3)[0])
        part = scores.images(index, index + 1)
        assert part.shape == (1, 3, 3, 5)
        torch.testing.assert_close(part.rows(1, 3), alone.rows(1, 3))


def test_words_of_another_model_and_impossible_options_are_refused() -> None:
    head = PixelTextHead(4, 6)
    with pytest.raises(ValueError, match=r'5.*6'):
        head(torch.randn(1, 4, 2, 2), torch.randn(3, 5))
    with pytest.raises(ValueError, match='kind'):
        SpatialRegularization('full')
    with pytest.raises(ValueError, match='gelu'):
        SpatialRegularization(activation='gelu')


def test_zero_features_give_finite_logits_and_gradients() -> None:
    head = PixelTextHead(4, 6)
    torch.nn.init.zeros_(head.project.bias)
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    logits = head(features, torch.randn(3, 6)).rows(0, 2)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize('activation', ['relu', 'lrelu', 'tanh'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('depth', [0, 1, 3])
def test_block_equals_its_definition(kind: str, depth: int, activation: str) -> None:
    made = block(kind, depth, activation)
    logits = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(made(logits), plain(logits, made))


@pytest.mark.parametrize('kind', KINDS)
def test_depth_zero_is_one_pass_without_activation(kind: str) -> None:
    shallow, single = block(kind, 0), block(kind, 1)
    single.load_state_dict(shallow.state_dict())
    logits = torch.randn(1, 4, 5, 6)
    assert torch.equal(shallow(logits), single(logits))
    assert shallow(logits - 100).min() < -50  # a ReLU at the end would have cut it


def test_block_has_ten_parameters_whatever_the_classes() -> None:
    made = block('bottleneck', 4)
    assert sum(parameter.numel() for parameter in made.parameters()) == 10
    for classes in (1, 7, 300):
        assert made(torch.randn(1, classes, 3, 4)).shape == (1, classes, 3, 4)


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_permuting_the_classes_permutes_the_result_exactly(kind: str) -> None:
    made, logits, order = block(kind, 3), torch.randn(2, 11, 6, 7), torch.randperm(11)
    assert torch.equal(made(logits)[:, order], made(logits[:, order]))


@pytest.mark.parametrize('kind', [None, *KINDS])
@pytest.mark.parametrize('depth', [1, 4])
@torch.no_grad()
def test_lazy_scores_equal_the_whole_map(kind: str | None, depth: int) -> None:
    made = None if kind is None else block(kind, depth)
    pixels, text = unit(2, 6, 9, 5), unit(7, 6)
    logits = torch.einsum('bdhw,kd->bkhw', pixels, text) * 10
    whole = logits if made is None else made(logits)
    for max_elements in (1, 3 * 90, 1 << 20):
        scores = PixelTextScores(pixels, text, 10.0, made, max_elements=max_elements)
        torch.testing.assert_close(scores.rows(0, 9), whole)
        for start, stop in ((0, 1), (3, 5), (8, 9), (2, 9)):
            for channels in (slice(None), slice(0, 1), slice(2, 6), slice(6, None)):
                found = scores.rows(start, stop, channels)
                torch.testing.assert_close(found, whole[:, channels, start:stop])
        assert torch.equal(argmax_labels(scores, 60), whole.argmax(1))


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_of_strips_and_slices_are_those_of_the_whole_map(kind: str) -> None:
    made, weights = block(kind, 2), torch.randn(1, 5, 8, 6)
    results = []
    for strips, slices in (([(0, 8)], [(0, 5)]), ([(0, 3), (3, 8)], [(0, 5)]), ([(0, 8)], [(0, 2), (2, 5)])):
        torch.manual_seed(1)
        raw, text = torch.randn(1, 6, 8, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
        pixels = torch.nn.functional.normalize(raw, dim=1)
        scores = PixelTextScores(pixels, torch.nn.functional.normalize(text, dim=1), 5.0, made)
        loss = sum(
            (scores.rows(a, b, slice(c, d)) * weights[:, c:d, a:b]).sum()
            for a, b in strips
            for c, d in slices
        )
        results.append(torch.autograd.grad(loss, [raw, text, *made.parameters()]))
    for other in results[1:]:
        for ours, theirs in zip(other, results[0]):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_scores_are_made_of_the_pixel_embeddings() -> None:
    scores = PixelTextScores(torch.randn(2, 6, 4, 5), torch.randn(900, 6), 1.0)
    assert scores.kept_elements == 2 * scores.images(0, 1).kept_elements == 2 * 6 * 4 * 5


def test_thousands_of_classes_need_no_map_of_all_of_them() -> None:
    classes, biggest = 4000, 0
    scores = PixelTextScores(
        unit(1, 8, 30, 20), unit(classes, 8), 14.0, block('bottleneck', 2), max_elements=20_000
    )
    correlate = scores._correlate

    def watched(start: int, stop: int, channels: slice) -> Tensor:
        nonlocal biggest
        logits = correlate(start, stop, channels)
        biggest = max(biggest, logits.numel())
        return logits

    scores._correlate = watched  # type: ignore[method-assign]
    labels = argmax_labels(scores, 20_000)
    assert biggest < 4 * 20_000 < classes * 600
    assert torch.equal(labels, scores.rows(0, 30).argmax(1))


def test_half_precision_is_close_and_leaves_float32_scores() -> None:
    pixels, text = unit(1, 64, 4, 5), unit(3, 64)
    full, half = PixelTextScores(pixels, text, 14.3), PixelTextScores(pixels, text, 14.3, half=True)
    assert half.rows(0, 4).dtype == torch.float32
    difference = (full.rows(0, 4) - half.rows(0, 4)).abs().max()
    assert 0 < difference < 2e-2


def test_logits_stay_float32_under_autocast() -> None:
    head = PixelTextHead(16, 32, regularization={'kind': 'bottleneck'})
    features, text = torch.randn(1, 16, 4, 5), torch.randn(7, 32)
    expected = head(features, text).rows(0, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        pixels = head.embed(features)
        logits = head(features, text).rows(0, 4)
    assert pixels.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(pixels.norm(dim=1), torch.ones(1, 4, 5))
    torch.testing.assert_close(logits, expected, atol=0.3, rtol=0)


@pytest.mark.parametrize('max_elements', [1 << 20, 4 * 5 * 7, 40, 1])
def test_chunked_loss_equals_torch_forward_and_gradient(max_elements: int) -> None:
    logits, labels = torch.randn(3, 4, 6, 7, requires_grad=True), torch.randint(-1, 4, (3, 6, 7))
    weight = torch.tensor([1.0, 1.0, 1.0, 0.2])
    for weights in (None, weight):
        expected = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=-1)
        biggest = 0

        def strips(images: slice, start: int, stop: int) -> Tensor:
            nonlocal biggest
            part = logits[images, :, start:stop]
            biggest = max(biggest, part.numel())
            return part

        found = pixel_cross_entropy(strips, labels, 4, weights, max_elements=max_elements)
        torch.testing.assert_close(found, expected)
        assert biggest <= max(max_elements, 4 * 7)
        ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
        torch.testing.assert_close(ours, theirs)


def test_loss_without_a_labelled_pixel_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = pixel_cross_entropy(
        lambda images, start, stop: logits[images, :, start:stop], torch.full((2, 4, 5), -1), 3
    )
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
