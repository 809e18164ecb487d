"""Sigmoid and softmax focal loss with their gradients, per element.

Source: Lin et al., ICCV 2017, Eq. 5. ``weight`` holds a factor per label, or is empty; background rows have
factor 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import full_precision


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit to ``output``.

    Args:
        input: logits [N, K].
        target: int64 labels [N]; a label outside 0..K-1 is background.
        weight: [K], or empty.
        output: buffer [N, K].
    """
    logits, is_label, factor = _prepare(input, target, weight)
    positive = -alpha * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits)
    negative = -(1 - alpha) * torch.sigmoid(logits) ** gamma * F.logsigmoid(-logits)
    output.copy_(torch.where(is_label, positive, negative) * factor)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element's loss by its logit to ``grad_input`` [N, K]."""
    logits, is_label, factor = _prepare(input, target, weight)
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    positive = alpha * q**gamma * (gamma * p * F.logsigmoid(logits) - q)
    negative = -(1 - alpha) * p**gamma * (gamma * q * F.logsigmoid(-logits) - p)
    grad_input.copy_(torch.where(is_label, positive, negative) * factor)


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of each row to ``output``.

    Args:
        softmax: probabilities [N, K].
        target: int64 labels [N]; a row with a label outside 0..K-1 is ignored, its loss is 0.
        weight: [K], or empty.
        output: buffer [N].
    """
    probs, is_label, factor = _prepare(softmax, target, weight)
    p, q = _of_label(probs, is_label)
    loss = -alpha * q**gamma * p.log() * factor[:, 0]
    output.copy_(loss * is_label.any(1))


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of each row's loss by its logits to ``grad_input`` [N, K]."""
    probs, is_label, factor = _prepare(softmax, target, weight)
    p, q = _of_label(probs, is_label)
    slope = alpha * (gamma * q ** (gamma - 1) * p * p.log() - q**gamma) * factor[:, 0]
    buff.copy_(slope * is_label.any(1))
    grad_input.copy_((slope * is_label.any(1))[:, None] * (is_label.to(probs.dtype) - probs))


def _prepare(values: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [N, K] in full precision, whether each element is the row's label [N, K], factor [N, 1]."""
    values = full_precision(values)
    classes = torch.arange(values.shape[1], device=values.device)
    is_label = target[:, None] == classes
    factor = values.new_ones(len(values), 1)
    if weight.numel():
        of_label = (is_label * weight.to(values.dtype)).sum(1, keepdim=True)
        factor = torch.where(is_label.any(1, keepdim=True), of_label, factor)
    return values, is_label, factor


def _of_label(probs: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the row's label [N] and its complement, both above zero."""
    p = (probs * is_label).sum(1)
    tiny = torch.finfo(p.dtype).tiny
    return p.clamp(min=tiny), (1 - p).clamp(min=tiny)
