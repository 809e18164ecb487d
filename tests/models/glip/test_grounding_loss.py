"""Token focal loss: by hand, against mmdet's focal loss, at its limits."""

import math

import pytest
import torch
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from ovd.models.glip.token_loss import token_focal_loss


def test_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0), 99.0]]])
    targets = torch.tensor([[[True, False, True]]])
    mask = torch.tensor([[True, True, False]])
    # 0.25 * 0.5^2 * log 2  +  0.75 * 0.75^2 * log 4
    expected = 0.25 * 0.25 * math.log(2) + 0.75 * 0.75**2 * math.log(4)
    assert token_focal_loss(logits, targets, mask).item() == pytest.approx(expected, rel=1e-6)


def test_as_the_host_computes_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 7, 5, generator=generator) * 3).requires_grad_()
    targets = torch.rand(2, 7, 5, generator=generator) < 0.3
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    ours = token_focal_loss(logits, targets, mask, alpha=0.3, gamma=1.5)
    (gradient,) = torch.autograd.grad(ours, logits)
    chosen = mask[:, None].expand_as(logits)
    theirs = py_sigmoid_focal_loss(
        logits[chosen], targets[chosen].float(), alpha=0.3, gamma=1.5, reduction='sum'
    )
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)
    assert gradient[1, :, 2:].abs().max() == 0


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[5e4, -5e4], [-5e4, 5e4]]], requires_grad=True)
    targets = torch.tensor([[[True, False], [True, False]]])
    loss = token_focal_loss(logits, targets, torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    half = token_focal_loss(logits.detach().half() / 2, targets, torch.ones(1, 2, dtype=torch.bool))
    assert half.isfinite()
    assert half.dtype == torch.float32


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r'got \(1, 2, 3\), \(1, 2, 4\) and \(1, 3\)'):
        token_focal_loss(
            torch.zeros(1, 2, 3), torch.zeros(1, 2, 4).bool(), torch.ones(1, 3, dtype=torch.bool)
        )
