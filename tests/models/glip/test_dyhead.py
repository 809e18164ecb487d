"""The block of DyHead: against the stored reference, and the flat reading of its shifts."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from ovd.models.glip.dyhead import DyHeadBlock, DynamicReLU
from tests.toys.reference.golden_glip import DYHEAD, golden, levels, load


@pytest.mark.parametrize(('name', 'deformable'), [('dyconv_a', True), ('dyconv_plain_a', False)])
def test_the_block_gives_the_stored_maps(name: str, deformable: bool) -> None:
    stored = golden(name)
    block = DyHeadBlock(32, deformable, upsample='nearest')
    load(block.eval(), stored, DYHEAD)
    with torch.no_grad():
        for ours, theirs in zip(block(levels(stored, 'in.vf')), levels(stored, 'out.vf')):
            torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-6)


def test_the_coarser_branch_reads_the_finer_shifts_as_a_flat_buffer() -> None:
    torch.manual_seed(0)
    block = DyHeadBlock(16)
    coarse, fine = torch.randn(2, 16, 3, 4, requires_grad=True), torch.randn(2, 16, 6, 8)
    torch.nn.init.normal_(block.shifts.weight, std=0.1)
    shifts = block._shifts(fine)
    assert [tuple(part.shape) for part in shifts] == [(2, 18, 6, 8), (2, 9, 6, 8)]
    out = block.from_coarser.conv(coarse, *shifts)
    offset = shifts[0].flatten(1)[:, : 18 * 12].view(2, 18, 3, 4)
    mask = shifts[1].flatten(1)[:, : 9 * 12].view(2, 9, 3, 4)
    conv = block.from_coarser.conv
    expected = deform_conv2d(coarse, offset, conv.weight, conv.bias, padding=1, mask=mask)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    weights = torch.randn_like(out)
    names = [coarse, conv.weight, block.shifts.weight]
    ours = torch.autograd.grad((out * weights).sum(), names, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), names)
    for gradient, other in zip(ours, theirs):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-4)


def test_layout_of_the_memory_does_not_matter() -> None:
    torch.manual_seed(0)
    block = DyHeadBlock(16).eval()
    torch.nn.init.normal_(block.shifts.weight, std=0.1)
    maps = [torch.randn(1, 16, 6, 8), torch.randn(1, 16, 3, 4), torch.randn(1, 16, 2, 2)]
    last = block([level.contiguous(memory_format=torch.channels_last) for level in maps])
    for ours, other in zip(block(maps), last):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


def test_coarser_maps_are_interpolated_with_aligned_corners() -> None:
    ramp = torch.arange(3.0).expand(1, 16, 2, 3)
    bilinear, nearest = DyHeadBlock(16), DyHeadBlock(16, upsample='nearest')
    assert bilinear._resized(ramp, (4, 5))[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    assert nearest._resized(ramp, (4, 5))[0, 0, 0].tolist() == [0, 0, 1, 1, 2]


def test_the_bend_by_hand() -> None:
    relu = DynamicReLU(4)
    torch.nn.init.zeros_(relu.expand.weight)
    with torch.no_grad():
        relu.expand.bias.copy_(torch.tensor([0.0, 3.0, -3.0, 1.5]).repeat_interleave(4))
    x = torch.tensor([-2.0, 1.0]).expand(1, 4, 2)[..., None]
    # hard sigmoids 0.5, 1, 0, 0.75: lines x + 0.5 and -x + 0.25.
    torch.testing.assert_close(relu(x)[0, 0, :, 0], torch.tensor([2.25, 1.5]))


def test_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    block = DyHeadBlock(16)
    out = block([torch.randn(2, 16, 6, 8), torch.randn(2, 16, 3, 4), torch.randn(2, 16, 2, 2)])
    sum(level.square().sum() for level in out).backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_channels_must_fit_the_groups() -> None:
    with pytest.raises(ValueError, match='channels 20 is not divisible by num_groups 16'):
        DyHeadBlock(20)
    with pytest.raises(ValueError, match="got 'cubic'"):
        DyHeadBlock(16, upsample='cubic')
