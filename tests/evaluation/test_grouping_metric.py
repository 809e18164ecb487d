"""Mask quality apart from naming: oracle, best group of classes and objects, outlines, the grid baseline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from ovd.evaluation.grouping import (
    GroupingMetric,
    count_boundary_pixels,
    measure_groups,
    name_groups,
    uniform_grid,
)
from ovd.evaluation.segmentation import SegmentationMetric, count_pixels

META = {'classes': ('cat', 'dog', 'cow'), 'background': 'class'}


def evaluate(metric: Any, images: list[dict[str, np.ndarray]], meta: dict[str, Any] | None = None) -> Any:
    metric.dataset_meta = meta or META
    samples = [
        {key: {'data': torch.from_numpy(np.asarray(labels))[None]} for key, labels in image.items()}
        for image in images
    ]
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


def scene(seed: int, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Truth with background, three classes and ignored pixels; groups that follow it roughly."""
    rng = np.random.default_rng(seed)
    truth = np.full((size, size), 3)
    for label in range(3):
        top, left = rng.integers(0, size - 8, 2)
        truth[top : top + 8, left : left + 8] = label
    groups = truth + 4 * (rng.random((size, size)) < 0.3)
    truth[rng.random((size, size)) < 0.05] = -1
    return groups, truth


def test_a_perfect_grouping_scores_one_whatever_its_numbers() -> None:
    _, truth = scene(0)
    groups = np.array([7, 2, 9, 0])[truth]
    found = evaluate(GroupingMetric(), [{'pred_groups': groups, 'gt_sem_seg': truth}])
    assert found['groups/oracle_mIoU'] == 1
    assert found['groups/oracle_boundary_mIoU'] == 1
    assert found['groups/class_IoU'] == 1
    assert found['groups/used'] == 4


def test_by_hand() -> None:
    # 4 pixels of cat, 2 of dog, 2 of background; group 0 has 3 of cat, group 1 all the rest.
    truth = np.array([[0, 0, 1, 1], [0, 0, 3, 3]])
    groups = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    assert name_groups(groups, truth, 4).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]  # 2/5 twice: the first wins
    found = evaluate(GroupingMetric(), [{'pred_groups': groups, 'gt_sem_seg': truth}])
    assert found['groups/oracle_mIoU'] == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)
    assert found['groups/oracle_mIoU_foreground'] == pytest.approx((3 / 4 + 2 / 5) / 2)
    assert found['groups/class_IoU'] == pytest.approx((3 / 4 + 2 / 5) / 2)
    assert found['groups/object_IoU'] == pytest.approx((3 / 4 + 2 / 5) / 2)
    assert found['groups/used'] == 2


def test_class_and_object_overlaps_differ_where_a_class_has_two_pieces() -> None:
    truth = np.array([[0, 3, 3, 0, 0]])
    groups = np.array([[0, 1, 1, 2, 2]])
    found = measure_groups(groups, truth, 4, 3)
    assert found.class_overlaps == [pytest.approx(2 / 3)]
    assert found.object_overlaps == [1.0, 1.0]
    assert measure_groups(groups, truth, 4, 3, min_object=2).object_overlaps == [1.0]


def test_means_go_over_images_for_classes_and_over_pieces_for_objects() -> None:
    half = {'pred_groups': np.array([[0, 0, 0, 0]]), 'gt_sem_seg': np.array([[0, 0, 1, 1]])}
    whole = {'pred_groups': np.array([[0, 1]]), 'gt_sem_seg': np.array([[2, 3]])}
    empty = {'pred_groups': np.array([[0, 1]]), 'gt_sem_seg': np.array([[3, 3]])}
    found = evaluate(GroupingMetric(), [half, whole, empty])
    assert found['groups/class_IoU'] == pytest.approx((0.5 + 1) / 2)
    assert found['groups/object_IoU'] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_ignored_pixels_and_pixels_without_a_group() -> None:
    truth = np.array([[0, 0, -1, -1, 3, 3]])
    groups = np.array([[0, 0, 0, 1, -1, -1]])
    found = measure_groups(groups, truth, 4, 3)
    assert found.class_overlaps == [1.0]
    assert found.used == 1  # group 1 has ignored pixels only
    assert name_groups(groups, truth, 4).tolist() == [[0, 0, 0, -1, -1, -1]]
    assert found.oracle.truth.tolist() == [2, 2]
    assert found.oracle.intersection.tolist() == [2, 0]
    nothing = measure_groups(groups, np.full_like(truth, -1), 4, 3)
    assert (nothing.used, nothing.class_overlaps, nothing.object_overlaps) == (0, [], [])


@pytest.mark.parametrize('seed', range(10))
def test_no_names_beat_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    images, names = [], []
    for index in range(3):
        groups, truth = scene(10 * seed + index)
        names.append(rng.integers(0, 4, 8))
        images.append({'pred_groups': groups, 'gt_sem_seg': truth, 'pred_sem_seg': names[-1][groups]})
        # Group by group it can be no other way.
        oracle = name_groups(groups, truth, 4)
        for group in np.unique(groups):
            mask = (groups == group) & (truth != -1)
            overlaps = {
                label: (mask & (truth == label)).sum() / (mask | (truth == label)).sum() for label in range(4)
            }
            best = oracle[groups == group][0]
            assert overlaps[best] >= overlaps[names[-1][group]]
    oracle_score = evaluate(GroupingMetric(), images)['groups/oracle_mIoU']
    assert oracle_score >= evaluate(SegmentationMetric(), images)['seg/mIoU']


def test_the_oracle_is_scored_as_the_model_is() -> None:
    images = [dict(zip(('pred_groups', 'gt_sem_seg'), scene(seed))) for seed in range(3)]
    named = [
        {**image, 'pred_sem_seg': name_groups(image['pred_groups'], image['gt_sem_seg'], 4)}
        for image in images
    ]
    oracle, plain = evaluate(GroupingMetric(), images), evaluate(SegmentationMetric(), named)
    assert oracle['groups/oracle_mIoU'] == plain['seg/mIoU']
    assert oracle['groups/oracle_IoU_background'] == plain['seg/IoU_background']


@pytest.mark.parametrize(
    ('height', 'width', 'count', 'shape'),
    [
        (480, 640, 8, (2, 4)),
        (640, 480, 8, (4, 2)),
        (100, 100, 9, (3, 3)),
        (10, 300, 8, (1, 8)),
        (7, 5, 1, (1, 1)),
    ],
)
def test_the_grid_is_as_square_as_it_can_be(
    height: int, width: int, count: int, shape: tuple[int, int]
) -> None:
    grid = uniform_grid(height, width, count)
    assert grid.shape == (height, width)
    assert np.unique(grid).tolist() == list(range(count))
    assert (len(np.unique(grid[:, 0])), len(np.unique(grid[0]))) == shape
    sizes = np.bincount(grid.ravel())
    assert sizes.max() <= 2 * sizes.min()


def test_the_grid_baseline_by_hand() -> None:
    # 4 x 8 pixels in 2 rectangles of 4 x 4; a cat on the left 4 x 2, a dog on the right half.
    truth = np.full((4, 8), 3)
    truth[:, :2], truth[:, 4:] = 0, 1
    groups = np.array([1, 1, 0, 0, 2, 2, 2, 2])[None].repeat(4, 0)
    metric = GroupingMetric(baseline_groups=2)
    found = evaluate(metric, [{'pred_groups': groups, 'gt_sem_seg': truth}])
    assert found['groups/oracle_mIoU'] == 1
    assert found['groups/grid_class_IoU'] == pytest.approx((8 / 16 + 1) / 2)
    assert found['groups/grid_oracle_mIoU'] == pytest.approx((8 / 16 + 1 + 0) / 3)  # the left half is cat
    assert found['groups/grid_used'] == 2
    assert 'groups/grid_oracle_mIoU' not in evaluate(
        GroupingMetric(), [{'pred_groups': groups, 'gt_sem_seg': truth}]
    )


def plain_edges(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask with a pixel outside it, or outside the image, within a square of a radius."""
    padded = np.pad(mask, distance)
    inner = np.ones_like(mask)
    for row in range(2 * distance + 1):
        for column in range(2 * distance + 1):
            inner &= padded[row : row + mask.shape[0], column : column + mask.shape[1]]
    return mask & ~inner


def test_outlines_equal_a_plain_second_implementation() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth = np.repeat(np.repeat(rng.integers(0, 3, (4, 5)), 6, 0), 6, 1)
        predicted = np.roll(truth, 2, axis=1)
        counts = count_boundary_pixels(predicted, truth, 0.05)
        distance = round(0.05 * np.hypot(24, 30))
        for row, label in enumerate(counts.labels):
            ours, theirs = (plain_edges(labels == label, distance) for labels in (predicted, truth))
            assert counts.intersection[row] == (ours & theirs).sum()
            assert counts.predicted[row] == ours.sum()
            assert counts.truth[row] == theirs.sum()


def test_a_ring_of_ignored_pixels_is_no_outline() -> None:
    predicted = np.zeros((40, 40), int)
    predicted[10:30, 10:30] = 1
    truth = predicted.copy()
    truth[8:32, 8:32][predicted[8:32, 8:32] == 0] = -1
    counts = count_boundary_pixels(predicted, truth, 0.02)
    assert counts.intersection.tolist() == counts.predicted.tolist() == counts.truth.tolist()
    assert (count_pixels(predicted, truth, 2).truth == [40 * 40 - 24 * 24, 400]).all()


def test_report_and_maps(tmp_path: Path) -> None:
    groups, truth = scene(1)
    metric = GroupingMetric(
        baseline_groups=8,
        out_file=tmp_path / 'groups.json',
        save_maps=tmp_path / 'maps',
        protocol={'run': 'a'},
    )
    metric.dataset_meta = META
    sample = {'pred_groups': {'data': torch.from_numpy(groups)[None]}, 'img_path': 'x/val/one.jpg'}
    metric.process({}, [sample | {'gt_sem_seg': PixelData(data=torch.from_numpy(truth)[None]).to_dict()}])
    metric.evaluate(1)
    report = json.loads((tmp_path / 'groups.json').read_text())
    assert report['protocol']['baseline_groups'] == 8
    assert report['protocol']['run'] == 'a'
    assert [row['name'] for row in report['groups_per_class']] == ['cat', 'dog', 'cow', 'background']
    assert report['metrics']['groups/oracle_mIoU'] > report['metrics']['groups/grid_oracle_mIoU']
    assert (tmp_path / 'maps' / 'val' / 'one.png').is_file()


def test_mistakes_are_named() -> None:
    image = {'pred_groups': np.zeros((2, 2), int), 'gt_sem_seg': np.zeros((2, 2), int)}
    with pytest.raises(ValueError, match='pred_groups'):
        evaluate(GroupingMetric(), [{'gt_sem_seg': image['gt_sem_seg']}])
    with pytest.raises(ValueError, match=r'\(1, 2\).*\(2, 2\)'):
        evaluate(GroupingMetric(), [{**image, 'pred_groups': np.zeros((1, 2), int)}])
    with pytest.raises(ValueError, match='0 to 4'):
        evaluate(GroupingMetric(), [{**image, 'gt_sem_seg': np.array([[0, 0], [0, 4]])}])
