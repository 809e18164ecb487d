"""Non-maximum suppression: hard, soft, and with the groups kept."""

import torch
import torchvision
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes kept, best score first.

    Args:
        boxes: [N, 4] xyxy; any floating type.
        scores: [N].
        iou_threshold: a box overlapping a better one by more than this is dropped.
        offset: 1 when the last pixel belongs to the box, so that a side is ``x2 - x1 + 1``; else 0.
    Returns:
        keep: int64, at most N, on the boxes' device.
    """
    boxes, scores = full_precision(boxes), full_precision(scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, scores.to(boxes), iou_threshold)


def full_precision(tensor: Tensor) -> Tensor:
    """Half and bfloat16 as float32, everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
