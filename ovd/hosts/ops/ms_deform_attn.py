"""Multi-scale deformable attention: mmcv's torch implementation, with the signature of the compiled operator.

mmcv calls the operator for CUDA tensors only; on the CPU it uses its torch implementation directly.
"""

import torch
from torch import Tensor

from .precision import full_precision


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    im2col_step: int,
) -> Tensor:
    """Gather each query's weighted samples from all levels.

    Args:
        value: [B, sum of h * w, heads, C].
        spatial_shapes: int64 [levels, 2], (h, w) of each level.
        level_start_index: [levels]; follows from ``spatial_shapes``.
        sampling_locations: [B, queries, heads, levels, points, 2], (x, y) in [0, 1].
        attention_weights: [B, queries, heads, levels, points].
        im2col_step: batching of the compiled operator, unused.
    Returns:
        [B, queries, heads * C].
    """
    inputs = [full_precision(tensor) for tensor in (value, sampling_locations, attention_weights)]
    return _attend(inputs, spatial_shapes).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Write the gradients of value, locations and weights; the forward pass is repeated, not stored."""
    inputs = [
        full_precision(tensor).detach().requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(inputs, spatial_shapes)
    grads = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    for buffer, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        buffer.copy_(grad)


def _attend(inputs: list[Tensor], spatial_shapes: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, locations, weights = inputs
    attended: Tensor = multi_scale_deformable_attn_pytorch(value, spatial_shapes.tolist(), locations, weights)
    return attended
