"""Cached regions follow the image through flips, resizes and crops."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS

from ovd.datasets.detection.region_embeddings import (
    LoadRegionEmbeddings,
    PackDetInputs,
    clip_boxes,
    is_visible,
    move_boxes,
)
from ovd.regions.store import RegionStore, RegionStoreWriter
from tests.helpers import shared_path

HEADER = {
    'clip_fingerprint': 'abc',
    'embed_dim': 4,
    'max_regions': 16,
    'crops': {},
    'proposals': {},
}


def write_store(folder: Path, boxes: Any, image_id: int = 7, scores: Any = None) -> str:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    embeddings = np.arange(len(boxes) * 4, dtype=np.float32).reshape(-1, 4) / 64
    scores = np.ones(len(boxes), np.float32) if scores is None else np.asarray(scores, np.float32)
    writer = RegionStoreWriter(folder, HEADER)
    for pending in writer.pending([image_id]):
        writer.add(pending, boxes, scores, embeddings)
    writer.close()
    return str(folder)


def image_of_a_box(box: tuple[int, int, int, int], height: int = 60, width: int = 80) -> dict[str, Any]:
    """A black image with one white rectangle, as the pipeline's ``results``."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return {'img': image, 'img_id': 7, 'img_shape': (height, width), 'ori_shape': (height, width)}


def white_box(image: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


AUGMENTATIONS = {
    'none': [],
    'flip': [{'type': 'RandomFlip', 'prob': 1.0}],
    'vertical': [{'type': 'RandomFlip', 'prob': 1.0, 'direction': 'vertical'}],
    'resize': [{'type': 'Resize', 'scale': (160, 120), 'keep_ratio': True}],
    'resize flip': [{'type': 'Resize', 'scale': (40, 30)}, {'type': 'RandomFlip', 'prob': 1.0}],
    'flip resize': [{'type': 'RandomFlip', 'prob': 1.0}, {'type': 'Resize', 'scale': (120, 60)}],
    'jitter': [
        {'type': 'RandomResize', 'scale': (80, 60), 'ratio_range': (1.5, 1.9), 'keep_ratio': True},
        {'type': 'RandomCrop', 'crop_size': (60, 50)},
        {'type': 'RandomFlip', 'prob': 0.5},
    ],
}


@pytest.mark.parametrize('name', AUGMENTATIONS)
@pytest.mark.parametrize('seed', range(4))
def test_boxes_follow_the_pixels(name: str, seed: int, tmp_path: Path) -> None:
    np.random.seed(seed)  # noqa: NPY002
    box = (30, 20, 50, 36)
    load = LoadRegionEmbeddings(write_store(tmp_path / 'store', [box]), num_regions=1, min_visible=0)
    steps = [TRANSFORMS.build({**step, '_scope_': 'mmdet'}) for step in AUGMENTATIONS[name]]
    results = Compose([*steps, load])(image_of_a_box(box))
    assert results['region_valid'].tolist() == [True]
    found = white_box(results['img'])
    np.testing.assert_allclose(results['region_bboxes'][0], found, atol=1.01)
    if name in ('none', 'flip', 'vertical'):
        assert results['region_bboxes'][0].tolist() == found


def test_regions_cropped_away_are_dropped_and_the_rest_is_padded(tmp_path: Path) -> None:
    boxes = [[0, 0, 10, 10], [40, 30, 60, 50], [5, 5, 21, 20], [0, 0, 0, 60]]
    load = LoadRegionEmbeddings(write_store(tmp_path / 'store', boxes), num_regions=4)
    results = image_of_a_box((0, 0, 1, 1))
    results['homography_matrix'] = np.array([[1, 0, -20], [0, 1, -20], [0, 0, 1]], np.float32)
    results = load(results)
    assert results['region_valid'].tolist() == [True, False, False, False]
    assert results['region_bboxes'][0].tolist() == [20, 10, 40, 30]
    np.testing.assert_array_equal(results['region_embeddings'][0], np.float16([4, 5, 6, 7]) / 64)
    assert not results['region_embeddings'][1:].any()


def test_draws_without_replacement_and_by_objectness(tmp_path: Path) -> None:
    boxes = [[i, 0, i + 10, 10] for i in range(10)]
    store = write_store(tmp_path / 'store', boxes, scores=[1.0] * 5 + [1e-3] * 5)
    np.random.seed(0)  # noqa: NPY002
    uniform = LoadRegionEmbeddings(store, num_regions=5)
    by_score = LoadRegionEmbeddings(store, num_regions=5, score_power=2.0)
    counts = np.zeros((2, 10))
    for _ in range(200):
        for row, load in enumerate((uniform, by_score)):
            drawn = load(image_of_a_box((0, 0, 1, 1)))['region_bboxes'][:, 0].astype(int)
            assert len(set(drawn)) == 5
            counts[row, drawn] += 1
    assert counts[0].min() > 60
    assert counts[1, :5].min() == 200


def test_all_regions_when_no_number_is_given(tmp_path: Path) -> None:
    store = write_store(tmp_path / 'store', [[0, 0, 10, 10], [5, 5, 30, 30]])
    results = LoadRegionEmbeddings(store, num_regions=None)(image_of_a_box((0, 0, 1, 1)))
    assert results['region_bboxes'].shape == (2, 4)
    assert results['region_valid'].all()


def test_missing_image_is_an_error_unless_allowed(tmp_path: Path) -> None:
    store = write_store(tmp_path / 'store', [[0, 0, 10, 10]], image_id=1)
    with pytest.raises(KeyError, match='7'):
        LoadRegionEmbeddings(store)(image_of_a_box((0, 0, 1, 1)))
    results = LoadRegionEmbeddings(store, num_regions=2, allow_missing=True)(image_of_a_box((0, 0, 1, 1)))
    assert results['region_valid'].tolist() == [False, False]
    assert results['region_embeddings'].shape == (2, 4)


def test_padding_comes_later(tmp_path: Path) -> None:
    load = LoadRegionEmbeddings(write_store(tmp_path / 'store', [[0, 0, 10, 10]]))
    with pytest.raises(ValueError):
        load({**image_of_a_box((0, 0, 1, 1)), 'pad_shape': (64, 96, 3)})


def test_travels_to_workers_and_packs(tmp_path: Path) -> None:
    load = LoadRegionEmbeddings(write_store(tmp_path / 'store', [[0, 0, 10, 10]]), num_regions=2)
    assert isinstance(load.reader, RegionStore)
    copy = pickle.loads(pickle.dumps(load))
    assert copy._reader is None
    packed = PackDetInputs()(copy(image_of_a_box((0, 0, 1, 1))))
    regions = packed['data_samples'].region_instances
    assert regions.metainfo == {'encoder_fingerprint': 'abc'}
    assert regions.bboxes.dtype == torch.float32
    assert regions.valid.tolist() == [True, False]
    assert regions.embeddings.shape == (2, 4)
    plain = PackDetInputs()(image_of_a_box((0, 0, 1, 1)))
    assert 'region_instances' not in plain['data_samples']


@pytest.mark.parametrize('flip', [0, 1])
def test_tf_box_mapping(flip: int) -> None:
    with np.load(shared_path('goldens/vild/aug_boxes_a.npz')) as data:
        height, width = data['image_hw'].tolist()
        (sy, sx), (oy, ox) = data['scale_yx'].tolist(), data['offset_yx'].tolist()
        canvas = 1024
        boxes = data['boxes_norm_yxyx'][:, [1, 0, 3, 2]] * np.float32([width, height, width, height])
        mirror = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) if flip else np.eye(3)
        homography = np.array([[sx, 0, -ox], [0, sy, -oy], [0, 0, 1]]) @ mirror
        moved = move_boxes(boxes, homography)
        visible = clip_boxes(moved, canvas, canvas, border=1)
        kept = is_visible(moved, visible, min_side=1e-3, min_visible=0)
        nonempty = data[f'flip{flip}/nonempty_idx']
        assert np.flatnonzero(kept).tolist() == nonempty.tolist()
        expected = data[f'flip{flip}/boxes_out'][:, [1, 0, 3, 2]]
        np.testing.assert_allclose(visible[nonempty], expected[nonempty], atol=1e-3)

        # the reference rule, as LoadRegionEmbeddings(drop_hidden=False, border=1) applies it
        load = LoadRegionEmbeddings('unused', num_regions=None, drop_hidden=False, border=1)
        rows = SimpleNamespace(boxes=boxes, scores=np.ones(len(boxes)), embeddings=np.zeros((len(boxes), 4)))
        load._reader = SimpleNamespace(header={}, read=lambda image_id: rows)
        results = {'img_id': 1, 'img_shape': (canvas, canvas), 'homography_matrix': homography}
        results = load(results)
        valid = data[f'flip{flip}/valid_by_max']
        assert len(results['region_bboxes']) == valid.sum()
        np.testing.assert_allclose(results['region_bboxes'], visible[valid], atol=1e-3)
