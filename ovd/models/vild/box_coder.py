"""Box coder of the official TensorFlow code, whose boxes include their last pixel."""

from typing import Any

from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ...registry import TASK_UTILS


@TASK_UTILS.register_module()
class InclusiveBoxCoder(DeltaXYWHBBoxCoder):
    """Delta coder for boxes of width x2 - x1 + 1, clipped to [0, W - 1].

    mmdet's legacy coder differs: its decoded corners are half a pixel away from the reference.

    Source: tensorflow/tpu: models/official/detection/utils/box_utils.py.
    """

    def encode(self, bboxes: Any, gt_bboxes: Any) -> Tensor:
        """Boxes [N, 4] and their targets [N, 4], xyxy -> offsets [N, 4]."""
        return super().encode(_outer(bboxes, 1), _outer(gt_bboxes, 1))

    def decode(
        self, bboxes: Any, pred_bboxes: Tensor, max_shape: Any = None, wh_ratio_clip: float = 16 / 1000
    ) -> Tensor:
        """Apply offsets [N, 4] to boxes [N, 4], xyxy; clip to ``max_shape`` (H, W)."""
        moved = get_box_tensor(super().decode(_outer(bboxes, 1), pred_bboxes, None, wh_ratio_clip))
        decoded = _outer(moved, -1)
        if max_shape is not None and self.clip_border:
            limit = decoded.new_tensor([max_shape[1], max_shape[0]] * 2) - 1
            decoded = decoded.clamp(min=0).minimum(limit)
        return decoded


def _outer(boxes: Any, pixels: float) -> Tensor:
    """Move the bottom right corner outwards by ``pixels``."""
    boxes = get_box_tensor(boxes)
    return boxes + boxes.new_tensor([0, 0, pixels, pixels])
