"""Where the boxes of ``ClipDetector`` come from.

Reading order: Regions, RegionSource, segment_boxes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from pycocotools import mask as coco_mask
from torch import Tensor

from ...datasets.annotations import read_annotations
from ...regions.proposal_files import ProposalTable, read_proposals
from ..proposals import DetectorProposals, select_rows

_TOLERANCE = 2.0  # pixels by which a box may leave its image


class Regions(NamedTuple):
    """Regions of an image.

    Attributes:
        boxes: [N, 4] xyxy, pixels of the original image.
        scores: [N], objectness.
        input_boxes: [N, 4], the same in pixels of the model's input.
        embeddings: [N, D], or None as long as nobody has looked at the crops.
        masks: rows -> bool [n, H, W] of the original image; None for boxes without masks.
    """

    boxes: Tensor
    scores: Tensor
    input_boxes: Tensor
    embeddings: Tensor | None = None
    masks: Callable[[Tensor], Tensor] | None = None


class RegionSource:
    """Class-agnostic proposals of one image after another.

    Args:
        file: proposals by image id, see ``read_proposals``; COCO results may bring a ``segmentation``.
        ann_file: annotation file of the images, which says that an image without proposals is one of them.
        config, checkpoint: of a detector: our RPN, or any other of mmdet, whose classes do not matter.
        segments: arguments of ``segment_boxes``: regions of even colour, where there is no detector at hand.
        top, nms, min_side: see ``Proposals``.
        device: of the detector.
        needs_scores: refuse a file without scores.
    Raises:
        ValueError: two sources; a file without scores where they are needed, or of no image of ``ann_file``.
    """

    def __init__(
        self,
        file: str | None = None,
        ann_file: str | None = None,
        config: str | None = None,
        checkpoint: str | None = None,
        segments: Mapping[str, Any] | None = None,
        top: int = 100,
        nms: float | None = 0.7,
        min_side: float = 4.0,
        device: str = 'cpu',
        needs_scores: bool = False,
    ) -> None:
        named = {'file': file, 'config': config, 'segments': segments}
        given = [name for name, value in named.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f'proposals come from one source, got {" and ".join(given)}')
        if (config is None) != (checkpoint is None):
            raise ValueError(f'proposals: config={config} and checkpoint={checkpoint} belong together')
        if top < 1 or (nms is not None and not 0 < nms <= 1) or min_side < 1:
            raise ValueError(
                f'proposals: expected top >= 1, nms in (0, 1] or None, min_side >= 1 pixel, '
                f'got top={top}, nms={nms}, min_side={min_side}'
            )
        self.kind = given[0] if given else 'samples'
        self.top, self.nms, self.min_side = top, nms, min_side
        self.segments = dict(segments or {})
        self.image_ids = None if ann_file is None else [i['id'] for i in read_annotations(ann_file)['images']]
        self.table: ProposalTable | None = None
        if file is not None:
            self.table = read_proposals(file, self.image_ids or [])
            if not len(self.table.boxes):
                raise ValueError(f'proposal file {file} is empty')
            if needs_scores and not self.table.has_scores:
                raise ValueError(
                    f'proposal file {file} has boxes without a score; set objectness_weight=0 to do without'
                )
        self.detector = None
        if config is not None and checkpoint is not None:
            self.detector = DetectorProposals(config, checkpoint, device)

    def __call__(self, image: Tensor, sample: DetDataSample, factor: Tensor) -> Regions:
        """Regions of an image.

        Args:
            image: uint8 RGB [3, H, W], the model's input without padding.
            sample: its data sample.
            factor: [4], input pixels per original pixel of x, y, x, y.
        Raises:
            ValueError: an image that the file does not know, or boxes of an image of another size.
        """
        height, width = sample.metainfo.get('ori_shape', image.shape[1:])[:2]
        boxes, scores, segmentations = self._find(image, sample, factor)
        if self.kind == 'file':
            check_boxes(boxes, (height, width), sample.metainfo.get('img_id'))
        boxes, rows = select_rows(boxes, scores, (height, width), self.top, self.nms, self.min_side)
        scores, masks = scores[rows], None
        if segmentations is not None:
            chosen = [segmentations[row] for row in rows.tolist()]

            def masks(wanted: Tensor) -> Tensor:
                found = [decode(chosen[row], height, width) for row in wanted.tolist()]
                return torch.from_numpy(np.stack(found)) if found else torch.zeros(0, height, width).bool()

        return Regions(boxes, scores, boxes * factor, masks=masks)

    def describe(self) -> dict[str, Any]:
        """What the boxes depend on."""
        found: dict[str, Any] = {'source': self.kind}
        if self.table is not None:
            found['sha256'] = self.table.sha256
        if self.detector is not None:
            found |= self.detector.describe()
        return {**found, 'top': self.top, 'nms': self.nms, 'min_side': self.min_side}

    def _find(
        self, image: Tensor, sample: DetDataSample, factor: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Any] | None]:
        """Boxes [N, 4] in original pixels, scores [N], and COCO segmentations where there are some."""
        if self.table is not None:
            image_id = sample.metainfo.get('img_id')
            known = self.table.counts if self.image_ids is None else {*self.table.counts, *self.image_ids}
            if image_id not in known:
                raise ValueError(
                    f'proposal file {self.table.source} has no image {image_id!r}; if it has images without '
                    'proposals, name their annotation file as proposals.ann_file'
                )
            rows = self.table.rows(image_id)
            masks = self.table.masks(image_id)
            return torch.from_numpy(rows[0].copy()), torch.from_numpy(rows[1].copy()), masks
        if self.kind == 'segments':
            array = image.permute(1, 2, 0).cpu().numpy()
            boxes, scores, segmentations = segment_boxes(array, **self.segments)
            return boxes / factor, scores, segmentations if bool((factor == 1).all()) else None
        if self.detector is not None:
            ((found, objectness),) = self.detector([image.permute(1, 2, 0).cpu().numpy()])
            return found / factor, objectness, None
        proposals = sample.get('proposals', None)
        if proposals is None:
            raise ValueError(
                f'image {sample.metainfo.get("img_id")!r} has no proposals: give the model '
                'proposals=dict(file=...), a detector, or segments'
            )
        scores = proposals.scores if 'scores' in proposals else torch.ones(len(proposals.bboxes))
        return proposals.bboxes.cpu().float() / factor, scores.cpu().float(), None


def check_boxes(boxes: Tensor, size: tuple[int, int], image_id: Any) -> None:
    """Refuse boxes [N, 4] that belong to an image of another (height, width)."""
    height, width = size
    outside = (boxes[:, :2] < -_TOLERANCE).any(1) | (
        boxes[:, 2:] > boxes.new_tensor([width, height]) + _TOLERANCE
    ).any(1)
    if outside.any():
        box = [round(value, 1) for value in boxes[outside.nonzero()[0, 0]].tolist()]
        raise ValueError(
            f'image {image_id!r} is {width} x {height} pixels, but a proposal is {box}: the file was made '
            'for images of another size'
        )


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation (polygons or run lengths) -> bool [height, width]."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation['counts'], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    mask: np.ndarray = coco_mask.decode(segmentation).astype(bool)
    return mask


def segment_boxes(
    image: np.ndarray, scales: Sequence[float] = (100.0, 300.0, 900.0), min_area: float = 0.004
) -> tuple[Tensor, Tensor, list[Any]]:
    """Regions of even colour at several scales, and the whole image: proposals without a detector.

    Args:
        image: uint8 RGB [H, W, 3].
        scales: of Felzenszwalb and Huttenlocher's segmentation, IJCV 2004; larger ones give larger regions.
        min_area: of a region, as a share of the image.
    Returns:
        boxes [N, 4] xyxy, scores [N] (1 each: nothing is known of them), COCO run lengths.
    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise ImportError('proposals of segments need scikit-image: pip install "ovd[photos]"') from None
    height, width = image.shape[:2]
    masks = [np.ones((height, width), bool)]
    for scale in scales:
        labels = felzenszwalb(image, scale=scale, sigma=0.8, min_size=max(1, int(min_area * height * width)))
        masks += [labels == label for label in range(int(labels.max()) + 1)]
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return torch.tensor(boxes, dtype=torch.float32), torch.ones(len(boxes)), encoded
