"""Pipeline steps that add cached CLIP embeddings of image regions to the samples."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs as MMDetPackDetInputs
from mmengine.structures import InstanceData

from ...regions.store import RegionStore
from ...registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadRegionEmbeddings(BaseTransform):
    """Load the cached regions of an image and transform their boxes like the augmented image.

    Put it after the last flip, resize or crop, whose recorded matrix it applies, and before padding and
    packing. Embeddings do not change; regions whose transformed box is too small or mostly outside are
    dropped. Adds ``region_bboxes`` [R, 4] float32, xyxy in the input frame; ``region_embeddings`` [R, D] as
    stored; ``region_valid`` [R] bool, False for padding up to ``num_regions``.

    Do not combine with mosaic, mixup or copy-paste: the embeddings do not include pasted pixels.

    Args:
        store: folder of a ``RegionStore``, keyed by image id.
        num_regions: R, number of regions sampled without replacement from the visible ones; None keeps all.
        score_power: sample in proportion to objectness to this power; 0 samples uniformly.
        min_side: smallest side, in input pixels, of the visible part of a box.
        min_visible: smallest visible share of the area of a box, in 0..1.
        border: boxes are clipped to [0, W - border]; the TensorFlow code uses 1.
        drop_hidden: False keeps all regions with a positive coordinate, as the TensorFlow code does;
            ``min_side`` and ``min_visible`` are then unused.
        allow_missing: treat an image that is not in the store as one without regions; by default KeyError.
    """

    def __init__(
        self,
        store: str,
        num_regions: int | None = 128,
        score_power: float = 0.0,
        min_side: float = 2.0,
        min_visible: float = 0.3,
        border: float = 0.0,
        drop_hidden: bool = True,
        allow_missing: bool = False,
    ) -> None:
        self.store = store
        self.num_regions = num_regions
        self.score_power = score_power
        self.min_side = min_side
        self.min_visible = min_visible
        self.border = border
        self.drop_hidden = drop_hidden
        self.allow_missing = allow_missing
        self._reader: RegionStore | None = None
        self._lock = threading.Lock()

    @property
    def reader(self) -> RegionStore:
        """The store, opened on first use in each worker."""
        with self._lock:
            if self._reader is None:
                self._reader = RegionStore(self.store)
            return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_reader': None, '_lock': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if 'pad_shape' in results:
            raise ValueError(
                'LoadRegionEmbeddings must come before Pad: it clips boxes to the image without padding'
            )
        boxes, scores, embeddings = self._read(results['img_id'])
        homography = results.get('homography_matrix')
        moved = move_boxes(boxes, np.eye(3) if homography is None else homography)
        height, width = results['img_shape'][:2]
        visible = clip_boxes(moved, height, width, self.border)
        if self.drop_hidden:
            kept = is_visible(moved, visible, self.min_side, self.min_visible)
        else:
            kept = visible.max(axis=1, initial=0) > 0
        rows = self._draw(np.flatnonzero(kept), scores)
        padding = 0 if self.num_regions is None else self.num_regions - len(rows)
        results['region_bboxes'] = np.pad(visible[rows].astype(np.float32), ((0, padding), (0, 0)))
        results['region_embeddings'] = np.pad(embeddings[rows], ((0, padding), (0, 0)))
        results['region_valid'] = np.arange(len(rows) + padding) < len(rows)
        results['region_source'] = self.reader.header.get('clip_fingerprint')
        return results

    def _read(self, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            rows = self.reader.read(int(image_id))
        except KeyError:
            if not self.allow_missing:
                raise
            width = self.reader.header['embed_dim']
            return np.zeros((0, 4)), np.zeros(0), np.zeros((0, width), np.float16)
        return rows.boxes, rows.scores, rows.embeddings

    def _draw(self, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Sample at most ``num_regions`` of the candidate rows."""
        if self.num_regions is None or len(candidates) <= self.num_regions:
            return candidates
        draw = np.random.random(len(candidates))  # noqa: NPY002  (the loader seeds this generator)
        if self.score_power:
            weights = np.clip(scores[candidates].astype(np.float64), 1e-6, None) ** self.score_power
            draw = (
                -np.log1p(-draw) / weights
            )  # weighted sampling: the smallest exponential variables of these rates
        return np.sort(candidates[np.argsort(draw)[: self.num_regions]])

    def __repr__(self) -> str:
        options = (f'{name}={value!r}' for name, value in self.__dict__.items() if not name.startswith('_'))
        return f'{type(self).__name__}({", ".join(options)})'


@TRANSFORMS.register_module()
class PackDetInputs(MMDetPackDetInputs):
    """mmdet's packing; adds ``data_sample.region_instances`` if regions were loaded.

    Also sets a random ``draw_seed`` in the metainfo of the ground truth, the seed of ``RepeatableSampler``.

    Args:
        meta_keys: as in mmdet.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'flip',
            'flip_direction',
        ),
    ) -> None:
        super().__init__(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        packed = super().transform(results)
        seed = int(np.random.randint(2**31))  # noqa: NPY002  (the loader seeds this generator)
        packed['data_samples'].gt_instances.set_metainfo({'draw_seed': seed})
        if 'region_bboxes' in results:
            packed['data_samples'].region_instances = InstanceData(
                metainfo={'encoder_fingerprint': results['region_source']},
                bboxes=torch.from_numpy(results['region_bboxes']),
                embeddings=torch.from_numpy(results['region_embeddings']),
                valid=torch.from_numpy(results['region_valid']),
            )
        return packed


def move_boxes(boxes: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] xyxy around the corners of the given boxes after a 3x3 homography; float64."""
    x1, y1, x2, y2 = boxes.astype(np.float64).reshape(-1, 4).T
    ones = np.ones_like(x1)
    corners = np.array([[x1, y1, ones], [x2, y1, ones], [x1, y2, ones], [x2, y2, ones]])  # [4, 3, N]
    moved = homography.astype(np.float64) @ corners
    points = moved[:, :2] / moved[:, 2:]
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).T


def clip_boxes(boxes: np.ndarray, height: int, width: int, border: float = 0.0) -> np.ndarray:
    """Clip boxes [N, 4] xyxy to [0, width - border] x [0, height - border]."""
    return boxes.clip(0, np.array([width, height, width, height]) - border)


def is_visible(boxes: np.ndarray, clipped: np.ndarray, min_side: float, min_visible: float) -> np.ndarray:
    """[N] bool: the clipped box has sides >= ``min_side`` and at least ``min_visible`` of the area."""
    sides, whole = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    return (sides.min(axis=1, initial=np.inf) >= min_side) & (
        sides.prod(axis=1) >= min_visible * whole.prod(axis=1)
    )
