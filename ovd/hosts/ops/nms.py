"""Non-maximum suppression: hard, soft, and with groups of suppressed boxes.

mmcv's wrappers implement ``batched_nms``, ``score_threshold`` and ``max_num`` with these. Among equal scores,
hard NMS prefers the lower index; mmcv's compiled code does not define their order.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import full_precision

_NAIVE, _LINEAR, _GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Drop every box that overlaps a better one by more than ``iou_threshold``.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: in [0, 1].
        offset: 1 when the pixel at x2 belongs to the box, so that a side is ``x2 - x1 + 1``; else 0.
    Returns:
        keep: int64 indices, best score first, on the boxes' device.
    """
    boxes = full_precision(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, full_precision(scores).to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap a better one, instead of dropping them.

    Args:
        boxes: [N, 4] xyxy, on the CPU.
        scores: [N].
        dets: [N, 5] buffer; its first M rows receive boxes and new scores, best first.
        iou_threshold: overlap from which on the naive and linear methods act.
        sigma: width of the gaussian method, ``exp(-iou ** 2 / sigma)``.
        min_score: boxes with lower new scores are dropped, except the best one.
        method: 0 naive (weight 0), 1 linear (weight 1 - iou), 2 gaussian.
        offset: as in :func:`nms`.
    Returns:
        keep: int64 [M].

    Source: Bodla et al., ICCV 2017, Sec. 3.
    """
    corners = full_precision(boxes.detach()).numpy()
    left_top, right_bottom = corners[:, :2], corners[:, 2:] + offset
    score = full_precision(scores.detach()).numpy().copy()
    area = (right_bottom - left_top).prod(1)
    alive = np.arange(len(score))
    keep, kept_scores = [], []
    while alive.size:
        best = int(alive[score[alive].argmax()])
        keep.append(best)
        kept_scores.append(score[best].item())
        alive = alive[alive != best]
        sides = np.minimum(right_bottom[alive], right_bottom[best]) - np.maximum(
            left_top[alive], left_top[best]
        )
        overlap = sides.clip(min=0).prod(1)
        union = area[alive] + area[best] - overlap
        iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
        score[alive] *= _decay(iou, iou_threshold, sigma, method)
        alive = alive[~(score[alive] < min_score)]
    indices = torch.tensor(keep, dtype=torch.int64)
    dets[: len(keep), :4] = boxes[indices]
    dets[: len(keep), 4] = torch.tensor(kept_scores, dtype=dets.dtype)
    return indices


def _decay(iou: np.ndarray, iou_threshold: float, sigma: float, method: int) -> np.ndarray:
    if method == _GAUSSIAN:
        return np.exp(-(iou**2) / sigma)
    return np.where(iou >= iou_threshold, 1 - iou if method == _LINEAR else 0, 1).astype(iou.dtype)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes: each kept one, followed by those it suppressed (IoU >= threshold), best score first.

    Args:
        dets: [N, 5], boxes xyxy and score, on the CPU.
        iou_threshold: in [0, 1].
    """
    dets = full_precision(dets)
    iou = torchvision.ops.box_iou(dets[:, :4], dets[:, :4])
    order = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while order.numel():
        best = order[0]
        belongs = iou[best, order] >= iou_threshold
        belongs[0] = True
        groups.append(order[belongs].tolist())
        order = order[~belongs]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, *, mode: int, aligned: bool, offset: int
) -> None:
    """Write overlaps of boxes [M, 4] and [N, 4] to ``ious``: [M, N], or [M] pairwise when ``aligned``.

    ``mode`` 0 divides the intersection by the union, 1 by the area of the first box. Two empty boxes have
    overlap 0.
    """
    first, second = full_precision(bboxes1), full_precision(bboxes2)
    if not aligned:
        first = first[:, None]
    sides = torch.min(first[..., 2:], second[..., 2:]) - torch.max(first[..., :2], second[..., :2]) + offset
    intersection = sides.clamp(min=0).prod(-1)
    area1 = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    area2 = (second[..., 2:] - second[..., :2] + offset).prod(-1)
    whole = area1 if mode else area1 + area2 - intersection
    ious.copy_(intersection / whole.clamp(min=offset or torch.finfo(whole.dtype).tiny))
