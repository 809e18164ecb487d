"""Operators compute in float32 or float64; half types are converted before, and rounded after."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return other tensors unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
