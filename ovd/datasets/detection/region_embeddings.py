"""Pipeline steps that bring cached CLIP embeddings of image regions to the detector."""

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
    """Load an image's cached regions and move their boxes to where the augmented image shows them.

    Put it after the last flip, resize or crop and before padding and packing: it follows flips, resizes and
    crops through the matrix they record. An embedding never changes; a region whose box ends up too small or
    mostly outside is left out. Adds ``region_bboxes`` [R, 4] float32, xyxy in the input frame;
    ``region_embeddings`` [R, D] as stored; ``region_valid`` [R] bool, False for the rows that fill up to
    ``num_regions``.

    Do not combine with mosaic, mixup or copy-paste: pasted pixels are not in the embeddings.

    Args:
        store: folder of a ``RegionStore``, keyed by image id.
        num_regions: R; that many regions are drawn without replacement from the visible ones. None keeps all.
        score_power: draw in proportion to objectness to this power; 0 draws uniformly.
        min_side: shortest allowed side, in input pixels, of what is visible of a box.
        min_visible: smallest allowed share of a box's area that is visible.
        border: boxes are clipped to [0, W - border]; the TensorFlow code uses 1.
        drop_hidden: False keeps regions as long as one coordinate is positive, however little is visible, as
            the TensorFlow code does; ``min_side`` and ``min_visible`` are then not used.
        allow_missing: an image that is not in the store has no regions, instead of raising KeyError.
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
        if num_regions is not None and num_regions < 1:
            raise ValueError(f'num_regions must be at least 1 or None, got {num_regions}')
        if not 0 <= min_visible <= 1:
            raise ValueError(f'min_visible is a share of the box area in [0, 1], got {min_visible}')
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
                'LoadRegionEmbeddings must come before Pad: it clips boxes to the image, not its margin'
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
        missing = 0 if self.num_regions is None else self.num_regions - len(rows)
        results['region_bboxes'] = np.pad(visible[rows].astype(np.float32), ((0, missing), (0, 0)))
        results['region_embeddings'] = np.pad(embeddings[rows], ((0, missing), (0, 0)))
        results['region_valid'] = np.arange(len(rows) + missing) < len(rows)
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
        """Rows of at most ``num_regions`` regions."""
        if self.num_regions is None or len(candidates) <= self.num_regions:
            return candidates
        draw = np.random.random(len(candidates))  # noqa: NPY002  (the loader seeds this generator)
        if self.score_power:
            weights = np.clip(scores[candidates].astype(np.float64), 1e-6, None) ** self.score_power
            draw = -np.log1p(-draw) / weights  # first arrivals of exponential clocks of these rates
        return np.sort(candidates[np.argsort(draw)[: self.num_regions]])

    def __repr__(self) -> str:
        options = (f'{name}={value!r}' for name, value in self.__dict__.items() if not name.startswith('_'))
        return f'{type(self).__name__}({", ".join(options)})'


@TRANSFORMS.register_module()
class PackDetInputs(MMDetPackDetInputs):
    """mmdet's packing, plus ``data_sample.region_instances`` when regions were loaded.

    The ground truth gets a random number, ``draw_seed`` in its metainfo, from which ``RepeatableSampler``
    draws.

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
    """Boxes [N, 4] xyxy after a 3x3 transform of the image: the box around the moved corners; float64."""
    x1, y1, x2, y2 = boxes.astype(np.float64).reshape(-1, 4).T
    ones = np.ones_like(x1)
    corners = np.array([[x1, y1, ones], [x2, y1, ones], [x1, y2, ones], [x2, y2, ones]])  # [4, 3, N]
    moved = homography.astype(np.float64) @ corners
    points = moved[:, :2] / moved[:, 2:]
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).T


def clip_boxes(boxes: np.ndarray, height: int, width: int, border: float = 0.0) -> np.ndarray:
    """Boxes [N, 4] xyxy inside [0, width - border] x [0, height - border]."""
    return boxes.clip(0, np.array([width, height, width, height]) - border)


def is_visible(boxes: np.ndarray, clipped: np.ndarray, min_side: float, min_visible: float) -> np.ndarray:
    """[N] bool: the clipped box has sides of at least ``min_side`` and this share of the whole box's area."""
    sides, whole = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    return (sides.min(axis=1, initial=np.inf) >= min_side) & (
        sides.prod(axis=1) >= min_visible * whole.prod(axis=1)
    )
