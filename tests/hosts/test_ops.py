"""The operators behind mmcv's wrappers: against hand-computed values, plain formulas and stored outputs.

Everything is called as mmcv's users call it, so the same tests pass with mmcv's own compiled operators.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

import ovd.hosts.ops as ops
from ovd.hosts.import_hooks import uses_stand_in
from tests.helpers import shared_path

mmcv_ops = pytest.importorskip('mmcv.ops')
needs_stand_in = pytest.mark.skipif(not uses_stand_in(), reason="tests our operators' own behaviour")


def random_boxes(count: int, size: float, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * size / 2], 1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope='module')
def goldens() -> dict[str, Tensor]:
    with np.load(shared_path('goldens/mmcv_ops/mmcv_ops_a.npz')) as content:
        return {name: torch.from_numpy(content[name]) for name in content}


# --- Suppression -----------------------------------------------------------------------------------------


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """Greedy suppression, one pair at a time."""
    keep: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(plain_iou(boxes[i].tolist(), boxes[j].tolist(), offset) <= threshold for j in keep):
            keep.append(i)
    return keep


def plain_iou(a: Sequence[float], b: Sequence[float], offset: int = 0) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return width * height / (area_a + area_b - width * height)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.2, 0.5])
def test_nms_follows_the_greedy_rule(generator: torch.Generator, threshold: float, offset: int) -> None:
    boxes, scores = random_boxes(40, 20, generator), torch.rand(40, generator=generator)
    dets, keep = mmcv_ops.nms(boxes, scores, threshold, offset=offset)
    assert keep.tolist() == plain_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


def test_nms_offset_counts_the_last_pixel() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 5]])  # 4 of 10 without, 9 of 18 with the last pixel
    scores = torch.tensor([0.9, 0.8])
    assert mmcv_ops.nms(boxes, scores, 0.45, offset=0)[1].tolist() == [0, 1]
    assert mmcv_ops.nms(boxes, scores, 0.45, offset=1)[1].tolist() == [0]


@needs_stand_in
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_nms_takes_any_floating_type(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]], dtype=dtype)
    dets, keep = mmcv_ops.nms(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.5)
    assert keep.tolist() == [1, 2]
    assert dets.dtype == dtype


def test_nms_of_no_and_of_one_box() -> None:
    dets, keep = mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (dets.shape, keep.shape, keep.dtype) == ((0, 5), (0,), torch.int64)
    assert mmcv_ops.nms(torch.tensor([[1.0, 1, 2, 2]]), torch.tensor([0.1]), 0.5)[1].tolist() == [0]


def test_batched_nms_keeps_overlapping_boxes_of_other_classes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    config = {'type': 'nms', 'iou_threshold': 0.5}
    assert mmcv_ops.batched_nms(boxes, scores, labels, config)[1].tolist() == [0, 1]
    assert mmcv_ops.batched_nms(boxes, scores, labels, config, class_agnostic=True)[1].tolist() == [0]
    empty = mmcv_ops.batched_nms(boxes[:0], scores[:0], labels[:0], None)[1]
    assert empty.shape == (0,)


OVERLAPPING = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10]])  # first two: IoU 0.8


@pytest.mark.parametrize(
    ('method', 'expected'),
    [
        ('naive', {0: 0.9, 2: 0.5}),
        ('linear', {0: 0.9, 2: 0.5, 1: 0.7 * 0.2}),
        ('gaussian', {0: 0.9, 2: 0.5, 1: 0.7 * math.exp(-(0.8**2) / 0.5)}),
    ],
)
def test_soft_nms_decays_scores(method: str, expected: dict[int, float]) -> None:
    dets, keep = mmcv_ops.soft_nms(OVERLAPPING, torch.tensor([0.9, 0.7, 0.5]), 0.3, method=method)
    assert keep.tolist() == list(expected)
    torch.testing.assert_close(dets[:, 4], torch.tensor(list(expected.values())))
    assert torch.equal(dets[:, :4], OVERLAPPING[keep])


def test_soft_nms_drops_what_falls_below_the_least_score() -> None:
    _, keep = mmcv_ops.soft_nms(
        OVERLAPPING, torch.tensor([0.9, 0.7, 0.5]), 0.3, min_score=0.2, method='linear'
    )
    assert keep.tolist() == [0, 2]
    dets, keep = mmcv_ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert (len(dets), len(keep)) == (0, 0)


def test_soft_nms_of_scores_that_carry_gradients() -> None:
    scores = torch.tensor([0.9, 0.7, 0.5], requires_grad=True)
    assert mmcv_ops.soft_nms(OVERLAPPING, scores, 0.3, method='naive')[1].tolist() == [0, 2]
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.5])


def test_nms_match_groups_boxes_with_their_suppressor() -> None:
    dets = torch.cat([OVERLAPPING, torch.tensor([[0.7], [0.9], [0.5]])], 1)
    assert [group.tolist() for group in mmcv_ops.nms_match(dets, 0.5)] == [[1, 0], [2]]
    assert [group.tolist() for group in mmcv_ops.nms_match(dets, 0.9)] == [[1], [0], [2]]


@needs_stand_in
@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(generator: torch.Generator, mode: str, offset: int) -> None:
    first, second = random_boxes(5, 8, generator), random_boxes(5, 8, generator)
    ious = mmcv_ops.bbox_overlaps(first, second, mode, offset=offset)
    pairwise = mmcv_ops.bbox_overlaps(first, second, mode, aligned=True, offset=offset)
    torch.testing.assert_close(pairwise, ious.diagonal())
    for i, j in itertools.product(range(5), range(5)):
        a, b = first[i].tolist(), second[j].tolist()
        expected = plain_iou(a, b, offset)
        if mode == 'iof':
            area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
            area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
            expected *= (area_a + area_b) / (1 + expected) / area_a
        assert ious[i, j].item() == pytest.approx(expected, abs=1e-6)
    assert mmcv_ops.bbox_overlaps(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [[0.0]]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_nms_golden(goldens: dict[str, Tensor], threshold: float, offset: int) -> None:
    dets, keep = mmcv_ops.nms(goldens['nms/boxes'], goldens['nms/scores'], threshold, offset=offset)
    assert torch.equal(keep, goldens[f'nms/thr{threshold}_offset{offset}/keep'])
    torch.testing.assert_close(dets, goldens[f'nms/thr{threshold}_offset{offset}/dets'], atol=1e-5, rtol=0)


def test_nms_golden_with_score_threshold_and_limit(goldens: dict[str, Tensor]) -> None:
    boxes, scores = goldens['nms/boxes'], goldens['nms/scores']
    dets, keep = mmcv_ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=20)
    assert torch.equal(keep, goldens['nms/thr0.5_score0.4_max20/keep'])
    torch.testing.assert_close(dets, goldens['nms/thr0.5_score0.4_max20/dets'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_golden(goldens: dict[str, Tensor], method: str, offset: int) -> None:
    boxes, scores = goldens['nms/boxes'], goldens['nms/scores']
    dets, keep = mmcv_ops.soft_nms(boxes, scores, 0.3, 0.5, 1e-3, method, offset)
    assert torch.equal(keep, goldens[f'soft_nms/{method}_offset{offset}/keep'])
    torch.testing.assert_close(dets, goldens[f'soft_nms/{method}_offset{offset}/dets'], atol=1e-5, rtol=0)


BATCHED = {
    'nms': {'type': 'nms'},
    'nms_agnostic': {'type': 'nms', 'class_agnostic': True},
    'nms_max30': {'type': 'nms', 'max_num': 30},
    'nms_split': {'type': 'nms', 'split_thr': 50},
    'soft_nms': {'type': 'soft_nms'},
}


@pytest.mark.parametrize('name', BATCHED)
def test_batched_nms_golden(goldens: dict[str, Tensor], name: str) -> None:
    inputs = (goldens['nms/boxes'], goldens['nms/scores'], goldens['nms/labels'])
    dets, keep = mmcv_ops.batched_nms(*inputs, {'iou_threshold': 0.5, **BATCHED[name]})
    assert torch.equal(keep, goldens[f'batched_nms/{name}/keep'])
    torch.testing.assert_close(dets, goldens[f'batched_nms/{name}/dets'], atol=1e-5, rtol=0)


def test_nms_match_golden(goldens: dict[str, Tensor]) -> None:
    dets = torch.cat([goldens['nms/boxes'], goldens['nms/scores'][:, None]], 1)
    groups = mmcv_ops.nms_match(dets, 0.5)
    assert [len(group) for group in groups] == goldens['nms_match/lengths'].tolist()
    assert torch.equal(torch.cat(groups), goldens['nms_match/flat'])


# --- Regions ---------------------------------------------------------------------------------------------

ROIS = torch.tensor([[0.0, 2, 3, 40, 29], [1, -12, -9, 18, 70], [1, 33, 20, 90, 90], [0, 5, 5, 5.5, 5.5]])


def plain_bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """One value of plane [h, w]; the border is repeated for one cell, beyond it everything is zero."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.sum() * 0
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    rows, columns = (int(y), min(int(y) + 1, height - 1)), (int(x), min(int(x) + 1, width - 1))
    dy, dx = y - rows[0], x - columns[0]
    top = plane[rows[0], columns[0]] * (1 - dx) + plane[rows[0], columns[1]] * dx
    bottom = plane[rows[1], columns[0]] * (1 - dx) + plane[rows[1], columns[1]] * dx
    return top * (1 - dy) + bottom * dy


def plain_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, mode: str, aligned: bool
) -> Tensor:
    """RoIAlign sample by sample, differentiable."""
    values = []
    for image, *corners in rois:
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0.0) for corner in corners)
        least = 0.0 if aligned else 1.0
        bin_h, bin_w = (y2 - y1).clamp(min=least) / size[0], (x2 - x1).clamp(min=least) / size[1]
        grid_h, grid_w = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for plane in features[int(image)]:
            for row, column in itertools.product(range(size[0]), range(size[1])):
                samples = torch.stack(
                    [
                        plain_bilinear(
                            plane,
                            y1 + bin_h * (row + (i + 0.5) / grid_h),
                            x1 + bin_w * (column + (j + 0.5) / grid_w),
                        )
                        for i, j in itertools.product(range(grid_h), range(grid_w))
                    ]
                )
                values.append(samples.mean() if mode == 'avg' else samples.max())
    return torch.stack(values).view(len(rois), features.shape[1], *size)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize(('ratio', 'aligned'), [(0, True), (0, False), (2, True)])
def test_roi_align_follows_its_formula(
    generator: torch.Generator, ratio: int, aligned: bool, mode: str
) -> None:
    features = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    arguments = (ROIS.double(), (2, 3), 1 / 8, ratio, mode, aligned)
    output = mmcv_ops.roi_align(features, *arguments)
    expected = plain_roi_align(features, *arguments)
    torch.testing.assert_close(output, expected, atol=1e-8, rtol=0)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad(output, features, grad_output)
    (expected_grad,) = torch.autograd.grad(expected, features, grad_output)
    torch.testing.assert_close(grad, expected_grad, atol=1e-8, rtol=0)


def test_roi_align_of_a_ramp_gives_the_centres_of_the_bins() -> None:
    ramp = torch.arange(8.0).repeat(1, 1, 8, 1)
    output = mmcv_ops.roi_align(ramp, torch.tensor([[0.0, 2, 2, 6, 6]]), 2, 1.0, 0, 'avg', True)
    assert output.tolist() == [[[[2.5, 4.5], [2.5, 4.5]]]]


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_of_no_region(mode: str) -> None:
    features = torch.randn(1, 3, 5, 5, requires_grad=True)
    output = mmcv_ops.roi_align(features, torch.zeros(0, 5), (2, 2), 1.0, 0, mode, True)
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def plain_roi_pool(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    values = []
    height, width = features.shape[-2:]
    for image, x1, y1, x2, y2 in rois.tolist():
        left, top, step_x = x1 * scale, y1 * scale, (x2 + 1 - x1) * scale / size[1]
        step_y = (y2 + 1 - y1) * scale / size[0]
        for plane in features[int(image)]:
            for row, column in itertools.product(range(size[0]), range(size[1])):
                rows = slice(
                    max(math.floor(row * step_y + top), 0), min(math.ceil((row + 1) * step_y + top), height)
                )
                columns = slice(
                    max(math.floor(column * step_x + left), 0),
                    min(math.ceil((column + 1) * step_x + left), width),
                )
                cells = plane[rows, columns]
                values.append(cells.max() if cells.numel() else plane.sum() * 0)
    return torch.stack(values).view(len(rois), features.shape[1], *size)


@needs_stand_in
def test_roi_pool_follows_its_formula(generator: torch.Generator) -> None:
    features = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.cat([ROIS.double(), torch.tensor([[0, 400, 400, 440, 440]])])  # the last one lies outside
    output = mmcv_ops.roi_pool(features, rois, (2, 3), 1 / 8)
    expected = plain_roi_pool(features, rois, (2, 3), 1 / 8)
    torch.testing.assert_close(output, expected, atol=0, rtol=0)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad(output, features, grad_output)
    (expected_grad,) = torch.autograd.grad(expected, features, grad_output)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=0)


@needs_stand_in
def test_roi_pool_by_hand_and_of_no_region() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    output = mmcv_ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 3, 3]]), 2, 1.0)
    assert output.tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]
    output.sum().backward()
    assert features.grad.nonzero()[:, 2:].tolist() == [[1, 1], [1, 3], [3, 1], [3, 3]]
    assert mmcv_ops.roi_pool(features, torch.zeros(0, 5), 2, 1.0).shape == (0, 1, 2, 2)
    backwards = mmcv_ops.roi_pool(features, torch.tensor([[0.0, 3, 3, 1, 1]]), 2, 1.0)
    assert backwards.tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('aligned', [0, 1])
def test_roi_align_golden(goldens: dict[str, Tensor], aligned: int, ratio: int, mode: str) -> None:
    name = f'roi_align/aligned{aligned}_ratio{ratio}_{mode}'
    features = goldens['roi/input'].clone().requires_grad_()
    output = mmcv_ops.roi_align(features, goldens['roi/rois'], (5, 7), 1 / 8, ratio, mode, bool(aligned))
    torch.testing.assert_close(output, goldens[f'{name}/out'], atol=1e-5, rtol=0)
    (output * goldens['roi/grad_output_5x7']).sum().backward()
    torch.testing.assert_close(features.grad, goldens[f'{name}/grad_input'], atol=1e-4, rtol=0)


# --- Deformable convolution ------------------------------------------------------------------------------


def plain_deform_conv(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """Modulated deformable convolution with one group, sample by sample, differentiable."""
    batch, _, height, width = features.shape
    out_channels, _, kernel, _ = weight.shape
    size = [(n + 2 * padding - kernel) // stride + 1 for n in (height, width)]
    rows = []
    for b, y, x in itertools.product(range(batch), range(size[0]), range(size[1])):
        columns = []
        for k, (i, j) in enumerate(itertools.product(range(kernel), range(kernel))):
            at_y = y * stride - padding + i + offset[b, 2 * k, y, x]
            at_x = x * stride - padding + j + offset[b, 2 * k + 1, y, x]
            columns.append(
                torch.stack([zero_padded(plane, at_y, at_x) for plane in features[b]]) * mask[b, k, y, x]
            )
        rows.append((weight.flatten(2) * torch.stack(columns, 1)).sum((1, 2)) + bias)
    return torch.stack(rows).view(batch, *size, out_channels).permute(0, 3, 1, 2)


def zero_padded(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear value of plane [h, w] with zeros around it."""
    padded = F.pad(plane, (2, 2, 2, 2))
    y, x = (y + 2).clamp(0.5, plane.shape[0] + 2.5), (x + 2).clamp(0.5, plane.shape[1] + 2.5)
    row, column = int(y), int(x)
    dy, dx = y - row, x - column
    top = padded[row, column] * (1 - dx) + padded[row, column + 1] * dx
    bottom = padded[row + 1, column] * (1 - dx) + padded[row + 1, column + 1] * dx
    return top * (1 - dy) + bottom * dy


def deform_inputs(generator: torch.Generator, size: tuple[int, int], stride: int = 1) -> list[Tensor]:
    """input, offset, mask, weight, bias of a 3x3 convolution with padding 1, float64, with gradients."""
    out = [(n - 1) // stride + 1 for n in size]
    shapes = [(2, 3, *size), (2, 18, *out), (2, 9, *out), (4, 3, 3, 3), (4,)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[2] = tensors[2].sigmoid()
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize('stride', [1, 2])
def test_modulated_deform_conv_follows_its_formula(generator: torch.Generator, stride: int) -> None:
    inputs = deform_inputs(generator, (4, 5), stride)
    output = mmcv_ops.modulated_deform_conv2d(*inputs, stride, 1)
    expected = plain_deform_conv(*inputs, stride, 1)
    torch.testing.assert_close(output, expected, atol=1e-8, rtol=0)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(output, inputs, grad_output)
    for grad, reference in zip(grads, torch.autograd.grad(expected, inputs, grad_output)):
        torch.testing.assert_close(grad, reference, atol=1e-8, rtol=0)


def test_plain_deform_conv_is_the_modulated_one_with_full_masks(generator: torch.Generator) -> None:
    features, offset, _, weight, _ = deform_inputs(generator, (4, 5))
    output = mmcv_ops.deform_conv2d(features, offset, weight, 1, 1)
    ones, zeros = torch.ones_like(offset[:, ::2]), torch.zeros_like(weight[:, 0, 0, 0])
    expected = plain_deform_conv(features, offset, ones, weight, zeros, 1, 1)
    torch.testing.assert_close(output, expected, atol=1e-8, rtol=0)
    inputs = (features, offset, weight)
    grads = torch.autograd.grad(output.square().sum(), inputs)
    for grad, reference in zip(grads, torch.autograd.grad(expected.square().sum(), inputs)):
        torch.testing.assert_close(grad, reference, atol=1e-7, rtol=0)


def test_deform_conv_without_offsets_is_a_convolution(generator: torch.Generator) -> None:
    features = torch.randn(2, 4, 6, 7, generator=generator)
    weight = torch.randn(6, 2, 3, 3, generator=generator)
    offset, mask = torch.zeros(2, 2 * 18, 6, 7), torch.ones(2, 2 * 9, 6, 7)
    expected = F.conv2d(features, weight, padding=2, dilation=2, groups=2)
    output = mmcv_ops.modulated_deform_conv2d(features, offset, mask, weight, None, 1, 2, 2, 2, 2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    plain = mmcv_ops.deform_conv2d(features, offset, weight, 1, 2, 2, 2, 2)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)


def test_deform_conv_reads_larger_maps_as_flat_buffers(generator: torch.Generator) -> None:
    """DyHead passes maps of a finer level; values, and gradients, are those of the first numbers."""
    features, offset, mask, weight, bias = (t.detach() for t in deform_inputs(generator, (8, 10)))
    small = features[:, :, :4, :5].contiguous()
    fine = [tensor.clone().requires_grad_() for tensor in (offset, mask)]
    output = mmcv_ops.modulated_deform_conv2d(small, *fine, weight, bias, 1, 1)
    flat = [
        tensor.flatten(1)[:, : tensor.shape[1] * 20].view(2, -1, 4, 5).requires_grad_()
        for tensor in (offset, mask)
    ]
    expected = mmcv_ops.modulated_deform_conv2d(small, *flat, weight, bias, 1, 1)
    assert torch.equal(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for tensor, first in zip(fine, flat):
        used = first[0].numel()
        assert torch.equal(tensor.grad.flatten(1)[:, :used], first.grad.flatten(1))
        assert not tensor.grad.flatten(1)[:, used:].any()


@needs_stand_in
def test_deform_conv_refuses_maps_smaller_than_its_output(generator: torch.Generator) -> None:
    features, offset, mask, weight, bias = deform_inputs(generator, (4, 5))
    with pytest.raises(ValueError, match=r'4x5.*3x5'):
        mmcv_ops.modulated_deform_conv2d(features, offset[:, :, :3], mask, weight, bias, 1, 1)
    with pytest.raises(ValueError, match=r'\(4, 5\), got \(4, 4\)'):
        mmcv_ops.deform_conv2d(features, offset[..., :4], weight, 1, 1)


@pytest.mark.parametrize('name', ['k3', 'k3_s2', 'k3_d2_g2', 'k1'])
@pytest.mark.parametrize('is_modulated', [True, False])
def test_deform_conv_golden(goldens: dict[str, Tensor], name: str, is_modulated: bool) -> None:
    source = f'modulated_deform_conv2d/{name}'
    result = source if is_modulated else f'deform_conv2d/{name}'
    names = ['input', 'offset', 'mask', 'weight', 'bias'] if is_modulated else ['input', 'offset', 'weight']
    inputs = [goldens[f'{source}/{key}'].clone().requires_grad_() for key in names]
    function = mmcv_ops.modulated_deform_conv2d if is_modulated else mmcv_ops.deform_conv2d
    output = function(*inputs, *goldens[f'{source}/stride_pad_dil_groups_dg'].tolist())
    torch.testing.assert_close(output, goldens[f'{result}/out'], atol=1e-4, rtol=0)
    output.backward(goldens[f'{source}/grad_output'])
    for key, tensor in zip(names, inputs):
        torch.testing.assert_close(tensor.grad, goldens[f'{result}/grad_{key}'], atol=1e-4, rtol=0)


def test_deform_conv_golden_of_finer_offsets(goldens: dict[str, Tensor]) -> None:
    name = 'modulated_deform_conv2d/finer_offsets'
    inputs = [goldens[f'{name}/{key}'] for key in ('input', 'offset', 'mask', 'weight')]
    output = mmcv_ops.modulated_deform_conv2d(*inputs, None, 1, 1)
    torch.testing.assert_close(output, goldens[f'{name}/out'], atol=1e-4, rtol=0)


# --- Focal losses ----------------------------------------------------------------------------------------

TARGET = torch.tensor([0, 3, 2, 4, 1])  # four classes; 4 is background


@needs_stand_in
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.75)])
def test_sigmoid_focal_loss_follows_its_formula(
    generator: torch.Generator, gamma: float, alpha: float
) -> None:
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = mmcv_ops.sigmoid_focal_loss(logits, TARGET, gamma, alpha, None, 'none')
    is_label = F.one_hot(TARGET, 5)[:, :4].double()
    expected = torchvision_focal_loss(logits, is_label, alpha, gamma)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    factor = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad(loss, logits, factor)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, logits, factor)[0], atol=1e-10, rtol=0)


@needs_stand_in
def test_sigmoid_focal_loss_by_hand() -> None:
    logits = torch.zeros(1, 2)
    loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[0.75, 0.25]]) * 0.25 * math.log(2))
    weighted = mmcv_ops.sigmoid_focal_loss(
        logits, torch.tensor([1]), 2.0, 0.25, torch.tensor([5.0, 3.0]), 'none'
    )
    torch.testing.assert_close(weighted, 3 * loss)
    background = mmcv_ops.sigmoid_focal_loss(
        logits, torch.tensor([2]), 2.0, 0.25, torch.tensor([5.0, 3.0]), 'none'
    )
    torch.testing.assert_close(background, torch.full((1, 2), 0.75 * 0.25 * math.log(2)))


@needs_stand_in
def test_sigmoid_focal_loss_of_extreme_logits_and_of_no_row() -> None:
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[50.0, 150.0]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.75]]))
    empty = mmcv_ops.sigmoid_focal_loss(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2.0, 0.25, None, 'sum'
    )
    assert empty.item() == 0


@needs_stand_in
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize('is_weighted', [False, True])
def test_softmax_focal_loss_follows_its_formula(
    generator: torch.Generator, gamma: float, alpha: float, is_weighted: bool
) -> None:
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2, 0, -1, 1])  # the third row is ignored
    weight = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64) if is_weighted else None
    loss = mmcv_ops.softmax_focal_loss(logits, target, gamma, alpha, weight, 'sum')
    p = logits.softmax(1)[[0, 1, 3], [2, 0, 1]]
    factor = torch.ones(3) if weight is None else weight[[2, 0, 1]]
    expected = (-alpha * factor * (1 - p) ** gamma * p.log()).sum()
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, logits)[0], atol=1e-10, rtol=0)


@needs_stand_in
def test_softmax_focal_loss_of_a_certain_row_is_finite() -> None:
    logits = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    mmcv_ops.softmax_focal_loss(logits, torch.tensor([0, 0]), 0.5, 1.0).backward()
    assert logits.grad.isfinite().all()


# --- Attention -------------------------------------------------------------------------------------------


def attention_inputs(
    generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Level shapes, level starts, value; locations and weights."""
    shapes = torch.tensor([[3, 4], [2, 2]])
    value = torch.randn(2, 16, 2, 3, generator=generator, dtype=dtype, requires_grad=True)
    locations = torch.rand(2, 5, 2, 2, 3, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, 5, 2, 2, 3, generator=generator, dtype=dtype)
    return shapes, torch.tensor([0, 12]), value, [locations.requires_grad_(), weights.requires_grad_()]


@needs_stand_in
def test_ms_deform_attn_equals_its_torch_formula(generator: torch.Generator) -> None:
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    shapes, starts, value, others = attention_inputs(generator, torch.float64)
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, *others, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, *others)
    torch.testing.assert_close(output, expected)
    grads = torch.autograd.grad(output.square().sum(), [value, *others])
    for grad, reference in zip(grads, torch.autograd.grad(expected.square().sum(), [value, *others])):
        torch.testing.assert_close(grad, reference)


@needs_stand_in
def test_ms_deform_attn_golden(goldens: dict[str, Tensor]) -> None:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, locations, weights = (
        goldens[f'ms_deform_attn/{key}'] for key in ('value', 'spatial_shapes', 'locations', 'weights')
    )
    starts = F.pad(shapes.prod(1).cumsum(0)[:-1], (1, 0))
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(output, goldens['ms_deform_attn/out'], atol=1e-5, rtol=0)


# --- Half types, autocast, devices -----------------------------------------------------------------------


def run_all(device: str, dtype: torch.dtype, rounding: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs and gradients of the differentiable operators on fixed inputs, rounded first if wanted."""
    generator = torch.Generator().manual_seed(5)
    rounding = rounding or dtype
    results: dict[str, Tensor] = {}

    def record(name: str, function: Callable[..., Tensor], tensors: list[Tensor], *rest: object) -> None:
        leaves = [t.detach().to(rounding).to(device, dtype).requires_grad_() for t in tensors]
        output = function(*leaves, *rest)
        output.sum().backward()
        results[name] = output.detach()
        results.update({f'{name}/grad{i}': leaf.grad for i, leaf in enumerate(leaves)})

    features = torch.randn(2, 3, 7, 9, generator=generator)
    rois = ROIS.to(device, dtype)  # exact in every type
    record('roi_align', mmcv_ops.roi_align, [features], rois, (2, 3), 1 / 8, 2, 'avg', True)
    record('roi_align_max', mmcv_ops.roi_align, [features], rois, (2, 3), 1 / 8, 2, 'max', True)
    record('roi_pool', mmcv_ops.roi_pool, [features], rois, (2, 3), 1 / 8)
    inputs = deform_inputs(generator, (4, 5))
    record('modulated_deform_conv', mmcv_ops.modulated_deform_conv2d, inputs, 1, 1)
    plain = [inputs[0], inputs[1], inputs[3]]
    record('deform_conv', mmcv_ops.deform_conv2d, plain, 1, 1)
    logits, target = torch.randn(5, 4, generator=generator), TARGET.to(device)
    record('sigmoid_focal', mmcv_ops.sigmoid_focal_loss, [logits], target, 2.0, 0.25, None, 'mean')
    record(
        'softmax_focal', mmcv_ops.softmax_focal_loss, [logits], target.clamp(max=3), 2.0, 0.25, None, 'mean'
    )
    return results


def assert_similar(results: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Equal up to ``rtol`` of each result's own scale."""
    assert results.keys() == expected.keys()
    for name, reference in expected.items():
        reference = reference.float().cpu()
        error = (results[name].float().cpu() - reference).abs().max()
        assert error <= rtol * max(1.0, reference.abs().max()), f'{name}: {error}'


@needs_stand_in
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_full_precision(dtype: torch.dtype) -> None:
    results = run_all('cpu', dtype)
    assert {result.dtype for result in results.values()} == {dtype}
    assert_similar(results, run_all('cpu', torch.float32, rounding=dtype), 2 * torch.finfo(dtype).eps)


@needs_stand_in
def test_ms_deform_attn_in_half_precision(generator: torch.Generator) -> None:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes, starts, value, others = attention_inputs(generator, torch.float32)
    expected = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, *others, 64)
    output = MultiScaleDeformableAttnFunction.apply(value.half(), shapes, starts, *others, 64)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), expected, atol=2e-2, rtol=0)
    output.sum().backward()
    assert value.grad.isfinite().all()


@needs_stand_in
def test_deform_conv_under_autocast_forward_and_backward(generator: torch.Generator) -> None:
    features, offset, mask, weight, bias = (t.detach().float() for t in deform_inputs(generator, (4, 5)))
    weight.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        output = mmcv_ops.modulated_deform_conv2d(features, offset.bfloat16(), mask, weight, bias, 1, 1)
        output.float().sum().backward()
    expected = mmcv_ops.modulated_deform_conv2d(features, offset, mask, weight.detach(), bias, 1, 1)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.2, rtol=5e-2)
    assert weight.grad.dtype == torch.float32
    assert weight.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    expected = run_all('cpu', dtype)
    assert_similar(run_all('cuda', dtype), expected, max(1e-4, 2 * torch.finfo(dtype).eps))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_suppression_equals_cpu(generator: torch.Generator) -> None:
    boxes, scores = random_boxes(200, 60, generator), torch.rand(200, generator=generator)
    labels = torch.arange(200) % 3
    for config in BATCHED.values():
        arguments = {'iou_threshold': 0.5, **config}
        dets, keep = mmcv_ops.batched_nms(boxes, scores, labels, arguments)
        on_gpu, keep_gpu = mmcv_ops.batched_nms(boxes.cuda(), scores.cuda(), labels.cuda(), arguments)
        assert torch.equal(keep_gpu.cpu(), keep)
        torch.testing.assert_close(on_gpu.cpu(), dets)


# --- Against the compiled operators, where they are installed --------------------------------------------


@pytest.mark.skipif(uses_stand_in(), reason='mmcv has no compiled operators here')
def test_every_operator_equals_the_compiled_one(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[Tensor]:
        boxes, scores = random_boxes(80, 30, generator.manual_seed(7)), torch.rand(80, generator=generator)
        outputs: list[Tensor] = [*mmcv_ops.nms(boxes, scores, 0.4, offset=1)]
        for method in ('naive', 'linear', 'gaussian'):
            outputs += mmcv_ops.soft_nms(boxes, scores, method=method)
        outputs += mmcv_ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
        features = torch.randn(2, 3, 7, 9, generator=generator, requires_grad=True)
        for ratio, mode, aligned in itertools.product((0, 2), ('avg', 'max'), (False, True)):
            pooled = mmcv_ops.roi_align(features, ROIS, (2, 3), 1 / 8, ratio, mode, aligned)
            outputs += [pooled, *torch.autograd.grad(pooled.square().sum(), features)]
        inputs = [tensor.detach().float().requires_grad_() for tensor in deform_inputs(generator, (4, 5))]
        modulated = mmcv_ops.modulated_deform_conv2d(*inputs, 1, 1)
        outputs += [modulated, *torch.autograd.grad(modulated.square().sum(), inputs)]
        plain = mmcv_ops.deform_conv2d(inputs[0], inputs[1], inputs[3], 1, 1)
        return [*outputs, plain, *torch.autograd.grad(plain.square().sum(), inputs[:2] + inputs[3:4])]

    compiled = run()
    stand_in = SimpleNamespace(**ops.OPERATORS)
    for name in ('deform_conv', 'modulated_deform_conv', 'nms', 'roi_align'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', stand_in)
    for ours, theirs in zip(run(), compiled, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
