"""Operators compute in float32 or float64: half types are widened on the way in, rounded on the way out."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
