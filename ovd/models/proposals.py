"""Sources of the boxes of a region store: a file, a detector trained on base classes, ground truth.

Source: ViLD, ICLR 2022, Sec. 3.2: proposals of a network trained on base classes; NMS 0.7, then the best M.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models.detectors import TwoStageDetector
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from torch import Tensor
from torchvision.ops import box_iou, nms

from ..checkpoints.loading import load_for_inference, load_tensors
from ..config import load_config
from ..datasets.image_pipeline import equal_shapes, image_steps
from ..files import require_file, sha256_file, sha256_json
from ..regions.proposal_files import ProposalTable, read_proposals
from ..registry import MODELS


class Proposals:
    """Boxes and scores of images: ground truth first, then the best proposals.

    Args:
        table: proposals read from a file, or None.
        detector: computes proposals if there is no table, or None.
        ground_truth: boxes [n, 4] by image id; always kept. Proposals that overlap them by more than ``nms``
            are dropped.
        top: number of proposals kept per image.
        nms: IoU above which the lower-scored of two proposals is dropped; None keeps all.
        min_side: boxes with a shorter side inside the image, in original pixels, are dropped.
    Raises:
        ValueError: no source, or two sources.
    """

    def __init__(
        self,
        table: ProposalTable | None = None,
        detector: 'DetectorProposals | None' = None,
        ground_truth: Mapping[int, np.ndarray] | None = None,
        top: int = 300,
        nms: float | None = 0.7,
        min_side: float = 8.0,
    ):
        num_sources = (table is not None) + (detector is not None)
        if num_sources > 1 or (num_sources == 0 and ground_truth is None):
            raise ValueError(
                'proposals need a file, or a config and checkpoint (not both), or ground_truth=True'
            )
        self.table, self.detector, self.ground_truth = table, detector, ground_truth or {}
        self.top = top if table is not None or detector is not None else 0
        self.nms, self.min_side = nms, min_side

    @property
    def max_regions(self) -> int:
        """Largest number of rows of an image."""
        return self.top + max((len(boxes) for boxes in self.ground_truth.values()), default=0)

    def max_rows(self, image_ids: Sequence[int]) -> int:
        """Largest total number of rows of these images, before NMS and ``min_side``."""
        total = sum(len(self.ground_truth.get(image_id, ())) for image_id in image_ids)
        if self.table is not None:
            return total + sum(min(self.top, self.table.count(image_id)) for image_id in image_ids)
        return total + (self.top * len(image_ids) if self.detector is not None else 0)

    def describe(self) -> dict[str, Any]:
        """Everything the boxes depend on, for the header of a store."""
        source: dict[str, Any] = {'source': 'ground truth'}
        if self.table is not None:
            source = {'source': 'file', 'sha256': self.table.sha256}
        elif self.detector is not None:
            source = {'source': 'detector', **self.detector.describe()}
        if self.ground_truth:
            boxes = {str(key): value.tolist() for key, value in self.ground_truth.items()}
            source['ground_truth_sha256'] = sha256_json(boxes)
        return {**source, 'top': self.top, 'nms': self.nms, 'min_side': self.min_side}

    def __call__(self, images: Sequence[tuple[int, np.ndarray]]) -> list[tuple[Tensor, Tensor]]:
        """(Image id, uint8 RGB [H, W, 3]) -> boxes [m, 4] float32 xyxy in pixels, scores [m]; best first."""
        if self.detector is not None:
            found = self.detector([image for _, image in images])
        elif self.table is not None:
            rows = [self.table.rows(image_id) for image_id, _ in images]
            found = [
                (torch.from_numpy(boxes.copy()), torch.from_numpy(scores.copy())) for boxes, scores in rows
            ]
        else:
            found = [(torch.zeros(0, 4), torch.zeros(0))] * len(images)
        return [
            self._select(image_id, (image.shape[0], image.shape[1]), *rows)
            for (image_id, image), rows in zip(images, found)
        ]

    def _select(
        self, image_id: int, size: tuple[int, int], boxes: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        boxes, scores = select_proposals(boxes, scores, size, self.top, self.nms, self.min_side)
        if image_id not in self.ground_truth:
            return boxes, scores
        given = torch.from_numpy(self.ground_truth[image_id]).float()
        given = select_proposals(given, torch.ones(len(given)), size, len(given), None, self.min_side)[0]
        if self.nms is not None and len(given) and len(boxes):
            keep = box_iou(boxes, given).amax(1) <= self.nms
            boxes, scores = boxes[keep], scores[keep]
        return torch.cat([given, boxes]), torch.cat([torch.ones(len(given)), scores])


def select_proposals(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    top: int,
    nms_threshold: float | None,
    min_side: float,
) -> tuple[Tensor, Tensor]:
    """Clip boxes to the image (height, width), drop small ones, apply NMS, keep the best ``top``, sorted.

    Ties keep their order, so the result does not depend on the machine.
    """
    boxes, kept = select_rows(boxes, scores, image_size, top, nms_threshold, min_side)
    return boxes, scores[kept]


def select_rows(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    top: int,
    nms_threshold: float | None,
    min_side: float,
) -> tuple[Tensor, Tensor]:
    """As ``select_proposals``, but the second result are the indices of the boxes that stay."""
    height, width = image_size
    limit = boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    large = ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= min_side).nonzero()[:, 0]
    order = large[scores[large].argsort(descending=True, stable=True)]
    if nms_threshold is not None:
        rank = torch.arange(len(order), 0, -1, dtype=torch.float32)
        order = order[nms(boxes[order], rank, nms_threshold)]
    return boxes[order[:top]], order[:top]


class DetectorProposals:
    """Class-agnostic boxes of a detector: an RPN's proposals, or any other detector's boxes.

    For speed, batch norms are merged into the convolutions and weights are stored channels-last; this changes
    the boxes by rounding only.

    Args:
        config: config of the detector (with its test pipeline), for example ``configs/shapes/rpn_shapes.py``.
        checkpoint: its weights.
        device: where it runs.
    Raises:
        FileNotFoundError, ValueError: config or checkpoint is missing, or they do not fit each other.
    """

    def __init__(
        self, config: str | os.PathLike[str], checkpoint: str | os.PathLike[str], device: str = 'cpu'
    ):
        loaded = load_config(config)
        tensors = load_tensors(checkpoint)
        with DefaultScope.overwrite_default_scope(loaded.get('default_scope', 'mmdet')):
            self.model = MODELS.build(loaded.model)
            self.pipeline = _array_pipeline(loaded)
        load_for_inference(self.model, tensors, source=str(checkpoint))
        self.model = fuse_conv_bn(self.model.eval()).to(device, memory_format=torch.channels_last)
        self._scope = loaded.get('default_scope', 'mmdet')
        self._identity = {
            'config_sha256': sha256_json(json.loads(json.dumps(loaded.model, default=str))),
            'checkpoint_sha256': sha256_file(checkpoint),
        }

    def describe(self) -> dict[str, Any]:
        """Hashes of architecture and weights."""
        return dict(self._identity)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """RGB images uint8 [H, W, 3] -> boxes [n, 4] in pixels of the image and scores [n], on the CPU.

        Only images of equal input size are batched, so that none is padded to another's size.
        """
        found: list[tuple[Tensor, Tensor]] = [(torch.zeros(0, 4), torch.zeros(0))] * len(images)
        with DefaultScope.overwrite_default_scope(self._scope):
            items = [
                self.pipeline({'img': np.ascontiguousarray(image[..., ::-1]), 'img_id': 0})
                for image in images
            ]
            for group in equal_shapes(items):
                batch = {key: [items[index][key] for index in group] for key in ('inputs', 'data_samples')}
                for index, instances in zip(group, self._predict(self.model.data_preprocessor(batch, False))):
                    boxes, scores = instances.bboxes.float(), instances.scores.float()
                    found[index] = boxes.cpu().reshape(-1, 4).clone(), scores.cpu().clone()
        return found

    def _predict(self, data: dict[str, Any]) -> list[Any]:
        inputs, samples = data['inputs'], data['data_samples']
        if isinstance(self.model, TwoStageDetector) and self.model.with_rpn:
            features = self.model.extract_feat(inputs)
            return list(self.model.rpn_head.predict(features, samples, rescale=True))
        return [sample.pred_instances for sample in self.model.predict(inputs, samples)]


def _array_pipeline(config: Config) -> Compose:
    """The test pipeline of the config for decoded images, without annotations."""
    from mmdet.utils import get_test_pipeline_cfg

    steps = image_steps(get_test_pipeline_cfg(config))
    return Compose([{'type': 'mmdet.LoadImageFromNDArray'}, *steps[1:]])


def build_proposals(
    section: Mapping[str, Any],
    image_ids: Sequence[int],
    ground_truth: Mapping[int, np.ndarray] | None,
    device: str = 'cpu',
) -> Proposals:
    """Open the source of a ``proposals`` section.

    Args:
        section: ``file`` or ``config`` and ``checkpoint``; ``top``, ``nms``, ``min_side``.
        image_ids: images of the data set, in its order.
        ground_truth: boxes that come first, or None.
        device: where a detector runs.
    """
    file, config, checkpoint = (section.get(key) for key in ('file', 'config', 'checkpoint'))
    if (config is None) != (checkpoint is None):
        raise ValueError(f'proposals need both config and checkpoint, got {config} and {checkpoint}')
    if checkpoint is not None:
        require_file(checkpoint, f'checkpoint of the proposal network {config}')
    rules = {key: section[key] for key in ('top', 'nms', 'min_side') if key in section}
    return Proposals(
        table=None if file is None else read_proposals(file, image_ids),
        detector=None
        if config is None or checkpoint is None
        else DetectorProposals(config, checkpoint, device),
        ground_truth=ground_truth,
        **rules,
    )
