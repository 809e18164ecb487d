"""Segmentation metrics: hand-computed tables, the host's metric as peer, two processes, written maps."""

import ovd  # noqa: F401  (a spawned process has no conftest, and the stand-ins come before the hosts)

# isort: split
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from ovd.datasets.segmentation.label_maps import read_label_map
from ovd.evaluation.segmentation import SegmentationMetric, count_pixels
from ovd.registry import METRICS

META = {
    'classes': ('cat', 'dog', 'owl', 'cow'),
    'unseen_classes': ('owl', 'cow'),
    'annotated_classes': ('cat', 'dog', 'owl'),
    'background': 'class',
    'vocabulary_hash': 'abc',
    'ann_file': 'maps',
}
# Two pictures; labels 0 cat, 1 dog, 2 owl, 3 cow (a word only), 4 background, -1 ignored.
TRUTH = [[[0, 0, 1, 1], [4, 4, -1, -1]], [[2, 2, 2, 4], [0, 0, 4, 4]]]
PREDICTED = [[[0, 1, 1, 1], [4, 0, 2, 0]], [[2, 3, -1, 4], [0, 2, 4, 4]]]
# I: cat 2, dog 2, owl 1, background 4; predicted: 3, 3, 2, 4 (and cow 1, nothing 1); truth: 4, 2, 3, 5
IOU = [2 / 5, 2 / 3, 1 / 4, 0 / 1, 4 / 5]


def sample(predicted: Any, truth: Any, name: str = 'a') -> dict[str, Any]:
    data = SegDataSample(metainfo={'img_path': f'pictures/val/{name}.jpg'})
    data.pred_sem_seg = PixelData(data=torch.as_tensor(predicted)[None])
    data.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    return dict(data.to_dict())


def evaluate(
    predicted: Any = PREDICTED, truth: Any = TRUTH, meta: dict[str, Any] = META, **options: Any
) -> tuple[dict[str, float], SegmentationMetric]:
    metric = SegmentationMetric(**options)
    metric.dataset_meta = meta
    for index, (mine, true) in enumerate(zip(predicted, truth)):
        metric.process({}, [sample(mine, true, f'picture{index}')])
    return metric.evaluate(len(truth)), metric


class TestByHand:
    def test_every_key(self) -> None:
        metrics, _ = evaluate()
        seen, unseen = (2 / 5 + 2 / 3) / 2, 1 / 4
        expected = {
            'seg/mIoU': (2 / 5 + 2 / 3 + 1 / 4 + 4 / 5) / 4,
            'seg/mIoU_foreground': (2 / 5 + 2 / 3 + 1 / 4) / 3,
            'seg/IoU_background': 4 / 5,
            'seg/mIoU_seen': seen,
            'seg/mIoU_unseen': unseen,
            'seg/hIoU': 2 * seen * unseen / (seen + unseen),
            'seg/mAcc': (2 / 4 + 2 / 2 + 1 / 3 + 4 / 5) / 4,
            'seg/aAcc': 9 / 14,
        }
        assert metrics == pytest.approx(expected)

    def test_report(self, tmp_path: Path) -> None:
        metrics, metric = evaluate(out_file=tmp_path / 'r.json', protocol={'templates': 'single'})
        report = json.loads((tmp_path / 'r.json').read_text())
        assert report == metric.report
        assert report['metrics'] == pytest.approx(metrics)
        rows = report['per_class']
        assert [row['name'] for row in rows] == ['cat', 'dog', 'owl', 'cow', 'background']
        assert [row['group'] for row in rows] == ['seen', 'seen', 'unseen', 'other', 'background']
        assert [row['IoU'] for row in rows] == pytest.approx(IOU)
        assert [row['ground_truth'] for row in rows] == [4, 2, 3, 0, 5]
        assert [row['predicted'] for row in rows] == [3, 3, 2, 1, 4]
        assert rows[3]['accuracy'] is None
        assert report['protocol'] == {
            'annotations': 'maps',
            'images': 2,
            'pixels': 14,
            'pixels_ignored': 2,
            'vocabulary_hash': 'abc',
            'classes_competing': 4,
            'classes_seen': 2,
            'classes_unseen': 1,
            'background': 'class',
            'background_in_mIoU': True,
            'templates': 'single',
        }

    def test_predictions_at_ignored_pixels_do_not_count(self) -> None:
        changed = [[row[:] for row in picture] for picture in PREDICTED]
        changed[0][1][2:] = [1, 4]
        assert evaluate(changed)[0] == evaluate()[0]

    def test_without_background_a_pixel_called_background_is_of_no_class(self) -> None:
        meta = {**META, 'background': 'ignore'}
        truth = [[[0, 0, 1, -1]]]
        metrics, metric = evaluate([[[0, 4, -1, 4]]], truth, meta)
        assert metrics['seg/mIoU'] == pytest.approx((1 / 2 + 0) / 2)
        assert metrics['seg/aAcc'] == pytest.approx(1 / 3)
        assert not {'seg/mIoU_foreground', 'seg/IoU_background'} & metrics.keys()
        assert [row['name'] for row in metric.report['per_class']] == list(META['classes'])

    def test_a_class_that_nobody_names_has_no_iou(self) -> None:
        metrics, metric = evaluate([[[0, 0]]], [[[0, 0]]])
        assert metrics['seg/mIoU'] == metrics['seg/mIoU_seen'] == 1
        assert math.isnan(metrics['seg/mIoU_unseen'])
        assert math.isnan(metrics['seg/hIoU'])
        assert math.isnan(metrics['seg/IoU_background'])
        assert metric.report['metrics']['seg/hIoU'] is None
        assert metric.report['per_class'][2]['IoU'] is None

    def test_nothing_right_at_all(self) -> None:
        metrics, _ = evaluate([[[1, 2]]], [[[0, 0]]])
        assert metrics['seg/hIoU'] == metrics['seg/mIoU'] == metrics['seg/aAcc'] == 0

    def test_everything_ignored(self) -> None:
        metrics, _ = evaluate([[[1, 2]]], [[[-1, -1]]])
        assert all(math.isnan(value) for value in metrics.values())

    def test_without_unseen_classes_there_are_no_halves(self) -> None:
        metrics, _ = evaluate([[[0, 1]]], [[[0, 0]]], {'classes': ('a', 'b')})
        assert metrics == pytest.approx({'seg/mIoU': 0.25, 'seg/mAcc': 0.5, 'seg/aAcc': 0.5})

    def test_means_of_the_set_are_not_means_of_pictures(self) -> None:
        metrics, _ = evaluate([[[0] * 9], [[0]]], [[[0] * 9], [[1]]], {'classes': ('a', 'b')})
        assert metrics['seg/mIoU'] == pytest.approx((9 / 10 + 0) / 2)

    def test_counts_are_of_the_labels_that_occur(self) -> None:
        counts = count_pixels(np.array([[500, 3, -1]]), np.array([[500, 500, 500]]), 100_000)
        assert counts.labels.tolist() == [3, 500]
        assert counts.intersection.tolist() == [0, 1]
        assert counts.predicted.tolist() == [1, 1]
        assert counts.truth.tolist() == [0, 3]


class TestBadInput:
    def test_labels_out_of_range(self) -> None:
        with pytest.raises(ValueError, match=r'picture0\.jpg.*0 to 5'):
            evaluate([[[5, 0]]], [[[0, 0]]])
        with pytest.raises(ValueError, match='0 to 255'):
            evaluate([[[0, 0]]], [[[0, 255]]])
        with pytest.raises(ValueError, match='4 to 4'):
            evaluate([[[0]]], [[[4]]], {**META, 'background': 'ignore'})

    def test_shapes_and_kinds(self) -> None:
        with pytest.raises(ValueError, match=r'\(1, 2\).*\(1, 3\)'):
            evaluate([[[0, 0]]], [[[0, 0, 0]]])
        with pytest.raises(ValueError, match='float32'):
            evaluate([torch.zeros(1, 2)], [[[0, 0]]])
        metric = SegmentationMetric()
        metric.dataset_meta = META
        with pytest.raises(ValueError, match='gt_sem_seg'):
            metric.process({}, [{'pred_sem_seg': {'data': torch.zeros(1, 2, 2, dtype=torch.long)}}])

    def test_a_data_set_without_classes(self) -> None:
        with pytest.raises(ValueError, match='classes'):
            SegmentationMetric().dataset_meta = {'background': 'none'}


class TestWrittenMaps:
    def test_eight_and_sixteen_bits(self, tmp_path: Path) -> None:
        evaluate(save_maps=tmp_path)
        stored = read_label_map(tmp_path / 'val' / 'picture1.png')
        assert stored.dtype == np.uint8
        assert stored.tolist() == np.where(np.array(PREDICTED[1]) == -1, 255, PREDICTED[1]).tolist()
        meta = {'classes': tuple(f'class {i}' for i in range(300))}
        evaluate([[[0, 255, 299, -1]]], [[[0, 255, 299, 3]]], meta, save_maps=tmp_path / 'many')
        assert read_label_map(tmp_path / 'many' / 'val' / 'picture0.png').tolist() == [[0, 255, 299, 65535]]


def random_pictures(classes: int, count: int, ignored: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(classes)
    truth = random.integers(0, classes, (count, 13, 17))
    predicted = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, classes, truth.shape))
    return predicted, np.where(random.random(truth.shape) < 0.1, ignored, truth)


@pytest.mark.parametrize('classes', [7, 200])
def test_equals_the_metric_of_mmseg(classes: int) -> None:
    predicted, truth = random_pictures(classes, 5, -1)
    names = tuple(map(str, range(classes)))
    mine, metric = evaluate(predicted, truth, {'classes': names})
    peer = IoUMetric(ignore_index=-1)
    peer.dataset_meta = {'classes': names}
    for one, other in zip(predicted, truth):
        peer.process({}, [sample(one, other)])
    areas = [sum(column) for column in zip(*peer.results)]
    rows = metric.report['per_class']
    np.testing.assert_allclose([row['IoU'] for row in rows], (areas[0] / areas[1]).numpy(), rtol=1e-6)
    theirs = peer.evaluate(5)
    for key in ('mIoU', 'mAcc', 'aAcc'):
        assert round(100 * mine[f'seg/{key}'], 2) == pytest.approx(theirs[key], abs=0.011)


def test_through_the_evaluator_in_batches_and_twice() -> None:
    evaluator = Evaluator([METRICS.build({'type': 'ovd.SegmentationMetric'})])
    evaluator.dataset_meta = META
    samples = []
    for predicted, truth in zip(PREDICTED, TRUTH):
        data = SegDataSample()
        data.pred_sem_seg = PixelData(data=torch.as_tensor(predicted)[None])
        data.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
        samples.append(data)
    for _ in range(2):
        evaluator.process(samples)
        assert evaluator.evaluate(2) == pytest.approx(evaluate()[0])


def evaluate_share(rank: int, folder: str) -> None:
    """One of two processes: 5 pictures, dealt round robin, so that one is dealt twice."""
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    predicted, truth = random_pictures(7, 5, -1)
    metric = SegmentationMetric(out_file=f'{folder}/report.json', collect_dir=f'{folder}/parts')
    metric.dataset_meta = {'classes': tuple('abcdefg'), 'unseen_classes': ('c', 'd')}
    for index in (0, 2, 4) if rank == 0 else (1, 3, 0):
        metric.process({}, [sample(predicted[index], truth[index])])
    metrics = metric.evaluate(5)
    Path(folder, f'rank{rank}.json').write_text(json.dumps(metrics))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(evaluate_share, (str(tmp_path),), nprocs=2)
    predicted, truth = random_pictures(7, 5, -1)
    metrics, metric = evaluate(predicted, truth, {'classes': tuple('abcdefg'), 'unseen_classes': ('c', 'd')})
    for rank in range(2):
        assert json.loads((tmp_path / f'rank{rank}.json').read_text()) == pytest.approx(metrics)
    assert json.loads((tmp_path / 'report.json').read_text()) == metric.report
