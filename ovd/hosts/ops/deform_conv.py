"""Deformable convolution, plain and modulated, forward and backward, on torchvision's kernel.

Source: Dai et al., ICCV 2017; Zhu et al., CVPR 2019 (modulated).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import full_precision


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Convolve at shifted positions, each sample weighted by a mask.

    Args:
        input: features [B, C, h, w].
        weight: [O, C / group, kernel_h, kernel_w]; bias: [O], read when ``with_bias``.
        offset: [B, 2 * deformable_group * kernel_h * kernel_w, h', w'], (y, x) pairs in feature cells.
        mask: [B, deformable_group * kernel_h * kernel_w, h', w'].
        output: buffer [B, O, H, W]. Maps larger than H x W are read as flat buffers, as DyHead relies on.
        ones, columns: buffers of the compiled operator, unused.
        geometry: kernel, stride, pad and dilation as ``stride_h``, ``stride_w`` ...; group, deformable_group.
    Raises:
        ValueError: an offset or mask map smaller than the output.
    """
    features = full_precision(input)
    size = (output.shape[2], output.shape[3])
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            features,
            weight.to(features.dtype),
            _fit(offset, size).to(features.dtype),
            _fit(mask, size).to(features.dtype),
            bias.to(features.dtype) if with_bias else features.new_zeros(len(weight)),
            *_arguments(geometry),
            True,
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write the five gradients; arguments as in :func:`modulated_deform_conv_forward`."""
    size = (grad_output.shape[2], grad_output.shape[3])
    grads = _gradients(
        grad_output, input, weight, _fit(offset, size), _fit(mask, size), _arguments(geometry), use_mask=True
    )
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    _unfit(grads[2], grad_offset)
    _unfit(grads[3], grad_mask)
    if with_bias:
        grad_bias.copy_(grads[4])


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Convolve at shifted positions; arguments as in :func:`modulated_deform_conv_forward`, without a mask.

    Raises:
        ValueError: an offset map of another size than the output.
    """
    features = full_precision(input)
    _require_size(offset, output)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            features,
            weight.to(features.dtype),
            offset.to(features.dtype),
            features.new_zeros(len(features), 1),
            features.new_zeros(len(weight)),
            *_plain_arguments(geometry),
            False,
        )
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Write the gradients of input and offset."""
    no_mask = input.new_zeros(len(input), 1)
    grads = _gradients(
        grad_output, input, weight, offset, no_mask, _plain_arguments(geometry), use_mask=False
    )
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **geometry: int,
) -> None:
    """Write the gradient of the weight, times ``scale``; it does not depend on the weight's value."""
    no_mask = input.new_zeros(len(input), 1)
    grads = _gradients(
        grad_output, input, grad_weight, offset, no_mask, _plain_arguments(geometry), use_mask=False
    )
    grad_weight.copy_(grads[1] * scale)


def _gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    arguments: tuple[int, ...],
    use_mask: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (input, weight, offset, mask, bias), in full precision even under autocast."""
    grad = full_precision(grad_output)
    tensors = (tensor.to(grad.dtype) for tensor in (input, weight, offset, mask))
    with torch.autocast(grad.device.type, enabled=False):
        grads: tuple[Tensor, ...] = torch.ops.torchvision._deform_conv2d_backward(
            grad, *tensors, grad.new_zeros(len(weight)), *arguments, use_mask
        )
    return grads


def _arguments(geometry: dict[str, int]) -> tuple[int, ...]:
    """torchvision's order of the modulated operator's keywords."""
    names = (
        'stride_h',
        'stride_w',
        'pad_h',
        'pad_w',
        'dilation_h',
        'dilation_w',
        'group',
        'deformable_group',
    )
    return tuple(geometry[name] for name in names)


def _plain_arguments(geometry: dict[str, int]) -> tuple[int, ...]:
    """torchvision's order of the plain operator's keywords."""
    names = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
    return tuple(geometry[name] for name in names)


def _fit(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The first numbers of each image's flat buffer [B, N, h', w'], seen as [B, N, *size]."""
    if maps.shape[2:] == size:
        return maps
    batch, channels, height, width = maps.shape
    needed = channels * size[0] * size[1]
    if channels * height * width < needed:
        raise ValueError(
            f'offset and mask maps must cover the output, {size[0]}x{size[1]}, but one is {height}x{width}'
        )
    return maps.reshape(batch, -1)[:, :needed].reshape(batch, channels, *size)


def _unfit(grad: Tensor, buffer: Tensor) -> None:
    """Write a gradient of :func:`_fit`'s result to ``buffer``, shaped as its argument; the rest is zero."""
    unused = buffer[0].numel() - grad[0].numel() if len(buffer) else 0
    buffer.copy_(F.pad(grad.reshape(len(grad), -1), (0, unused)).view(buffer.shape))


def _require_size(offset: Tensor, output: Tensor) -> None:
    expected: Any = output.shape[2:]
    if offset.shape[2:] != expected:
        raise ValueError(f'expected offset maps of {tuple(expected)}, got {tuple(offset.shape[2:])}')
