"""Windows, scales and mirror images, against plain loops over whole tensors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.layers.score_maps import (
    ResizedScores,
    ScoreMaps,
    TensorScores,
    argmax_labels,
    materialize,
)
from ovd.layers.score_sums import WindowedScores
from ovd.models.segmentation_inference import (
    LSegMultiScale,
    MultiScale,
    Slide,
    Whole,
    build_inference,
    fit_long_side,
)

BLACK = torch.tensor([-1.0, -2.0, 0.5])


class ToyNetwork:
    """A convolution that sees the border of its window, at half resolution; not symmetric under mirroring."""

    def __init__(self, classes: int = 3) -> None:
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(classes, 3, 4, 4, generator=generator)
        self.forwards: list[tuple[int, ...]] = []
        self.contexts: list[Tensor | None] = []

    def scores(self, inputs: Tensor) -> Tensor:
        low = F.conv2d(F.pad(inputs, (1, 2, 1, 2)), self.weight, stride=2)
        return F.interpolate(low, inputs.shape[2:], mode='bilinear', align_corners=True)

    def __call__(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        self.forwards.append(tuple(inputs.shape))
        self.contexts.append(context)
        low = F.conv2d(F.pad(inputs, (1, 2, 1, 2)), self.weight, stride=2)
        return ResizedScores(TensorScores(low), (inputs.shape[2], inputs.shape[3]), True)


def slide_plainly(network: ToyNetwork, image: Tensor, crop: tuple[int, int], step: tuple[int, int]) -> Tensor:
    """mmseg's rule, written for one window after the other."""
    _, _, height, width = image.shape
    total, counts = 0.0, torch.zeros(height, width)
    top = 0
    while True:
        y2 = min(top + crop[0], height)
        y1 = max(y2 - crop[0], 0)
        left = 0
        while True:
            x2 = min(left + crop[1], width)
            x1 = max(x2 - crop[1], 0)
            window = network.scores(image[:, :, y1:y2, x1:x2])
            total = total + F.pad(window, (x1, width - x2, y1, height - y2))
            counts[y1:y2, x1:x2] += 1
            if left + crop[1] >= width:
                break
            left += step[1]
        if top + crop[0] >= height:
            break
        top += step[0]
    return total / counts


@pytest.mark.parametrize(
    ('size', 'crop', 'step'),
    [
        ((20, 31), (12, 12), (8, 8)),
        ((12, 12), (12, 12), (8, 8)),
        ((7, 40), (12, 12), (5, 7)),
        ((24, 24), (12, 16), (12, 8)),
        ((5, 3), (12, 12), (8, 8)),
    ],
)
def test_slide_equals_a_plain_loop(
    size: tuple[int, int], crop: tuple[int, int], step: tuple[int, int]
) -> None:
    network, image = ToyNetwork(), torch.randn(2, 3, *size)
    for windows_per_forward in (1, 3, 100):
        inference = Slide(crop, step, windows_per_forward)
        found = materialize(inference(network, image))
        torch.testing.assert_close(found, slide_plainly(network, image, crop, step), atol=2e-5, rtol=0)


def test_slide_runs_windows_together() -> None:
    network = ToyNetwork()
    Slide(12, 8, windows_per_forward=4)(network, torch.randn(2, 3, 20, 28))
    assert network.forwards == [(8, 3, 12, 12), (4, 3, 12, 12)]


def resize(image: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(image, size, mode='bilinear', align_corners=align_corners)


@pytest.mark.parametrize('align_corners', [False, True])
def test_scales_and_mirror_images_are_averaged(align_corners: bool) -> None:
    network, image = ToyNetwork(), torch.randn(1, 3, 15, 22)
    inference = MultiScale(Whole(), (0.5, 1.0, 1.5), flip=True, align_corners=align_corners)
    expected = torch.zeros(1, 3, 15, 22)
    for size in [(8, 11), (15, 22), (23, 33)]:
        scaled = resize(image, size, align_corners)
        expected += resize(network.scores(scaled), (15, 22), align_corners)
        expected += resize(network.scores(scaled.flip(3)).flip(3), (15, 22), align_corners)
    torch.testing.assert_close(materialize(inference(network, image)), expected / 6, atol=2e-5, rtol=0)


def test_base_size_sets_the_longer_side() -> None:
    network = ToyNetwork()
    MultiScale(Whole(), (0.5, 1.0), base_size=21)(network, torch.randn(1, 3, 20, 10))
    assert network.forwards == [(1, 3, 11, 6), (1, 3, 21, 11)]
    assert fit_long_side((10, 10), 7) == (7, 7)
    assert fit_long_side((1, 100), 10) == (1, 10)


def lseg_plainly(
    network: ToyNetwork, image: Tensor, base: int, crop: int, step: int, scales: Any, flip: bool
) -> tuple[Tensor, int]:
    """The evaluator of LSeg, one window after the other; the scores and the number of forwards."""
    _, _, height, width = image.shape
    total, forwards = torch.zeros(1, 3, height, width), 0

    def pad(part: Tensor, size: tuple[int, int]) -> Tensor:
        canvas = BLACK.view(1, 3, 1, 1).expand(1, 3, *size).clone()
        canvas[:, :, : part.shape[2], : part.shape[3]] = part
        return canvas

    for scale in scales:
        long = math.ceil(base * scale)
        size = (long, int(width * long / height + 0.5)) if height > width else (
            int(height * long / width + 0.5), long)  # fmt: skip
        scaled = resize(image, size, True)
        padded = pad(scaled, (max(size[0], crop), max(size[1], crop)))
        _, _, h, w = padded.shape
        grid, counts = torch.zeros(1, 3, h, w), torch.zeros(h, w)
        for row in range(math.ceil((h - crop) / step) + 1):
            for column in range(math.ceil((w - crop) / step) + 1):
                y1, x1 = row * step, column * step
                y2, x2 = min(y1 + crop, h), min(x1 + crop, w)
                window = pad(padded[:, :, y1:y2, x1:x2], (crop, crop))
                scores = network.scores(window)
                forwards += 1
                if flip:
                    scores = scores + network.scores(window.flip(3)).flip(3)
                    forwards += 1
                grid[:, :, y1:y2, x1:x2] += scores[:, :, : y2 - y1, : x2 - x1]
                counts[y1:y2, x1:x2] += 1
        total += resize((grid / counts)[:, :, : size[0], : size[1]], (height, width), True)
    return total, forwards


@pytest.mark.parametrize('flip', [True, False])
@pytest.mark.parametrize('size', [(30, 45), (45, 30), (33, 33), (9, 60)])
def test_lseg_evaluator_equals_a_plain_loop(size: tuple[int, int], flip: bool) -> None:
    network, image = ToyNetwork(), torch.randn(1, 3, *size)
    scales = (0.5, 1.0, 1.75)
    expected, forwards = lseg_plainly(network, image, 35, 24, 16, scales, flip)
    for windows_per_forward in (1, 4, 100):
        network.forwards.clear()
        inference = LSegMultiScale(35, 24, None, scales, flip, windows_per_forward)
        found = materialize(inference(network, image, black=BLACK))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert sum(shape[0] for shape in network.forwards) == forwards


INFERENCES = {
    'slide': lambda **limits: Slide(12, 8, **limits),
    'scales': lambda **limits: MultiScale(Slide(12, 8, **limits), (0.75, 1.25), flip=True),
    'lseg': lambda **limits: LSegMultiScale(24, 12, **limits),
}


@pytest.mark.parametrize('name', INFERENCES)
def test_deferred_and_eager_sums_give_the_same_scores(name: str) -> None:
    image = torch.randn(2, 3, 21, 29)
    found = {}
    for eager_elements in (0, 3000, 10**9):
        inference = INFERENCES[name](eager_elements=eager_elements, max_elements=500)
        found[eager_elements] = inference(ToyNetwork(), image)
    assert isinstance(found[10**9], TensorScores)
    assert isinstance(found[0], WindowedScores)
    whole = [scores.rows(0, 21) for scores in found.values()]
    assert torch.equal(whole[0], whole[2])
    assert torch.equal(whole[1], whole[2])
    labels = [argmax_labels(scores, limit) for scores in found.values() for limit in (50, 10**6)]
    assert all(torch.equal(labels[0], other) for other in labels)


def test_many_windows_are_not_kept_for_few_classes() -> None:
    """A large picture has so many overlapping windows that the sum of their scores is the smaller thing."""
    image = torch.randn(1, 3, 21, 29)
    dense, sparse = (Slide(12, stride, eager_elements=1)(ToyNetwork(), image) for stride in (4, 8))
    assert isinstance(dense, TensorScores)
    assert isinstance(sparse, WindowedScores)
    assert sparse.kept_elements < 3 * 21 * 29 == dense.kept_elements


@pytest.mark.parametrize('name', INFERENCES)
def test_a_batch_equals_its_images(name: str) -> None:
    images = torch.randn(3, 3, 21, 29)
    inference = INFERENCES[name]()
    batch = materialize(inference(ToyNetwork(), images))
    for index in range(3):
        single = materialize(inference(ToyNetwork(), images[index : index + 1]))
        torch.testing.assert_close(batch[index : index + 1], single, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', INFERENCES)
def test_every_window_comes_with_what_is_known_of_its_image(name: str) -> None:
    """The context of row i of a forward is that of the image that row i was cut from."""

    class Network(ToyNetwork):
        def __call__(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
            assert context is not None
            assert context.shape == (len(inputs), 2)
            inside = inputs.amax(dim=(1, 2, 3))
            assert torch.equal(context[:, 0], inside)
            return super().__call__(inputs, context)

    images = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 21, 29)
    INFERENCES[name]()(Network(), images, torch.tensor([[1.0, 0.0], [2.0, 0.0]]))


def test_modes_are_built_from_a_configuration() -> None:
    assert isinstance(build_inference({}, True), Whole)
    slide = build_inference({'mode': 'slide', 'crop_size': (448, 448), 'stride': (224, 224)}, False)
    assert isinstance(slide, Slide)
    assert (slide.crop_size, slide.stride) == ((448, 448), (224, 224))
    lseg = build_inference({'mode': 'lseg', 'eager_elements': 7}, True)
    assert isinstance(lseg, LSegMultiScale)
    assert (lseg.base_size, lseg.crop_size, lseg.stride, lseg.flip) == (520, 480, 320, True)
    assert lseg.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert lseg.eager_elements == 7
    scaled = build_inference({'scales': (0.5, 1), 'flip': True, 'max_elements': 9}, True)
    assert isinstance(scaled, MultiScale)
    assert (scaled.scales, scaled.flip, scaled.align_corners, scaled.max_elements) == (
        (0.5, 1),
        True,
        True,
        9,
    )


@pytest.mark.parametrize(
    ('test_cfg', 'error', 'value'),
    [
        ({'mode': 'sliding'}, ValueError, 'sliding'),
        ({'mode': 'slide', 'crop_size': 8}, TypeError, 'stride'),
        ({'mode': 'slide', 'crop_size': 8, 'stride': 9}, ValueError, r'\(9, 9\)'),
        ({'mode': 'slide', 'crop_size': (8, 8, 8), 'stride': 4}, ValueError, 'values'),
        ({'mode': 'whole', 'crop_size': 8}, TypeError, 'crop_size'),
        ({'crop': 8}, TypeError, 'crop'),
        ({'mode': 'lseg', 'stride': 500}, ValueError, '500'),
    ],
)
def test_bad_configurations_are_named(test_cfg: dict, error: type[Exception], value: str) -> None:
    with pytest.raises(error, match=value):
        build_inference(test_cfg, True)
