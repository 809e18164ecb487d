"""AP of boxes and masks: hand-computed cases, pycocotools, the LVIS golden, VOC, and the report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd.datasets.annotations import read_annotations
from ovd.datasets.detection.base_novel import OpenVocabularyDataset
from ovd.evaluation.average_precision import Detections
from ovd.evaluation.detection import AnnotationMetric, DetectionMetric, LVISMetric
from ovd.evaluation.voc import VOCMetric, area_under_curve, eleven_point_precision, precision_recall
from ovd.registry import METRICS
from tests.helpers import shared_path, write_coco

BOX = [10.0, 10.0, 20.0, 10.0]
FAR_BOX = [40.0, 30.0, 20.0, 10.0]
NAMES = ['cat', 'dog', 'owl']
META = {'classes': NAMES, 'base_classes': ['cat', 'dog'], 'novel_classes': ['owl']}


def sample(image_id: int, rows: list[tuple[int, float, list[float]]], masks: Any = None) -> dict[str, Any]:
    """A data sample from (label, score, [x, y, w, h]) rows."""
    boxes = torch.tensor([box for _, _, box in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances = {
        'bboxes': boxes,
        'scores': torch.tensor([score for _, score, _ in rows], dtype=torch.float32),
        'labels': torch.tensor([label for label, _, _ in rows], dtype=torch.int64),
    }
    if masks is not None:
        instances['masks'] = masks
    return {'img_id': image_id, 'pred_instances': instances}


def evaluate(
    metric: AnnotationMetric, meta: dict[str, Any], samples: list[dict[str, Any]]
) -> dict[str, float]:
    metric.dataset_meta = meta
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Image 1: a cat and an owl; image 2: two cats. Ids 5, 2, 9 of cat, dog, owl."""
    boxes = [[(0, BOX), (2, FAR_BOX)], [(0, BOX), (0, FAR_BOX)]]
    return write_coco(tmp_path, NAMES, boxes, category_ids=[5, 2, 9])


def perfect_samples(
    annotations: Path, labels: dict[int, int], with_masks: bool = False
) -> list[dict[str, Any]]:
    """The ground truth as predictions; ``labels`` of category ids."""
    content = read_annotations(annotations)
    samples = []
    for image in content['images']:
        items = [
            item
            for item in content['annotations']
            if item['image_id'] == image['id'] and item['category_id'] in labels and not item.get('iscrowd')
        ]
        masks = None
        if with_masks:
            masks = [
                mask_utils.merge(
                    mask_utils.frPyObjects(item['segmentation'], image['height'], image['width'])
                )
                for item in items
            ]
        rows = [(labels[item['category_id']], 0.9, item['bbox']) for item in items]
        samples.append(sample(image['id'], rows, masks))
    return samples


class TestHandComputed:
    def test_groups_are_means_over_their_classes_with_ground_truth(self, toy: Path) -> None:
        """Cat: right, wrong, right of three objects; owl: one of one found; dog has no ground truth.

        Cat precision is 1 up to recall 1/3 (34 of 101 points) and 2/3 up to 2/3 (33 points more).
        """
        samples = [
            sample(1, [(0, 0.9, BOX), (0, 0.8, FAR_BOX), (2, 0.3, FAR_BOX)]),
            sample(2, [(0, 0.7, BOX), (1, 0.99, BOX)]),
        ]
        metrics = evaluate(DetectionMetric(ann_file=toy), META, samples)
        cat = (34 * 1 + 33 * 2 / 3) / 101
        assert metrics['bbox/AP50_base'] == pytest.approx(cat)
        assert metrics['bbox/AP_base'] == pytest.approx(cat)
        assert metrics['bbox/AP50_novel'] == pytest.approx(1)
        assert metrics['bbox/AP50'] == metrics['bbox/AP75'] == pytest.approx((cat + 1) / 2)
        assert metrics['bbox/AR@100'] == pytest.approx((2 / 3 + 1) / 2)

    def test_box_of_iou_0_6_counts_up_to_threshold_0_6(self, toy: Path) -> None:
        shifted = [10.0, 10.0, 12.0, 10.0]  # 12 of 20 columns: IoU 0.6
        metrics = evaluate(DetectionMetric(ann_file=toy), META, [sample(1, [(0, 0.9, shifted)])])
        assert metrics['bbox/AP50_base'] == pytest.approx(1)
        assert metrics['bbox/AP_base'] == pytest.approx(0.3)
        assert metrics['bbox/AP75'] == 0

    def test_group_without_ground_truth_is_nan_and_null(self, toy: Path, tmp_path: Path) -> None:
        metric = DetectionMetric(ann_file=toy, out_file=tmp_path / 'metrics.json')
        metrics = evaluate(metric, META, [sample(2, [(0, 0.9, BOX)])])
        assert math.isnan(metrics['bbox/AP_novel'])
        assert json.loads((tmp_path / 'metrics.json').read_text())['metrics']['bbox/AP_novel'] is None

    def test_only_predicted_images_count(self, toy: Path) -> None:
        metric = DetectionMetric(ann_file=toy)
        assert evaluate(metric, META, [sample(1, [(0, 0.9, BOX), (2, 0.9, FAR_BOX)])])['bbox/AP'] == 1
        assert metric.report['protocol']['images'] == 1
        assert metric.report['protocol']['images_in_file'] == 2

    def test_classes_outside_the_file_compete_without_a_score(self, toy: Path) -> None:
        meta = {'classes': ['yak', *NAMES]}
        metric = DetectionMetric(ann_file=toy)
        metrics = evaluate(metric, meta, [sample(1, [(1, 0.9, BOX), (0, 0.95, BOX), (3, 0.9, FAR_BOX)])])
        assert metrics['bbox/AP'] == 1
        assert 'bbox/AP_novel' not in metrics
        assert metric.report['protocol']['classes_competing'] == 4
        assert metric.report['per_class'][0] == {
            'name': 'yak',
            'group': 'base',
            'ground_truth': 0,
            'detections': 0,
        }

    def test_classes_of_neither_group_are_not_averaged(self, toy: Path) -> None:
        meta = {'classes': NAMES, 'base_classes': ['owl'], 'novel_classes': ['dog']}
        metric = DetectionMetric(ann_file=toy)
        assert evaluate(metric, meta, [sample(1, [(2, 0.9, FAR_BOX)])])['bbox/AP'] == 1
        assert [row['group'] for row in metric.report['per_class']] == ['other', 'novel', 'base']

    def test_one_class(self, toy: Path) -> None:
        metrics = evaluate(
            DetectionMetric(ann_file=toy), {'classes': ['owl']}, [sample(1, [(0, 0.1, FAR_BOX)])]
        )
        assert metrics['bbox/AP'] == 1

    def test_annotation_of_id_zero_is_matched(self, toy: Path) -> None:
        content = json.loads(toy.read_text())
        for item in content['annotations']:
            item['id'] -= 1
        toy.write_text(json.dumps(content))
        assert (
            evaluate(DetectionMetric(ann_file=toy), META, [sample(1, [(0, 0.9, BOX)])])['bbox/AP_base'] == 1
        )

    def test_own_file_may_number_its_categories_otherwise_than_the_data_set(self, toy: Path) -> None:
        meta = {**META, 'ann_file': 'elsewhere.json', 'category_ids': (1, 2, 3)}
        metrics = evaluate(DetectionMetric(ann_file=toy), meta, [sample(1, [(2, 0.9, FAR_BOX)])])
        assert metrics['bbox/AP_novel'] == 1


class TestMasks:
    def test_perfect_masks_of_every_form(self, toy: Path) -> None:
        tensor = torch.zeros(2, 48, 64, dtype=torch.bool)
        tensor[0, 10:20, 10:30] = True
        tensor[1, 30:40, 40:60] = True
        codes = mask_utils.encode(np.asfortranarray(tensor.numpy().transpose(1, 2, 0).astype(np.uint8)))
        text_codes = [{**code, 'counts': code['counts'].decode()} for code in codes]
        rows = [(0, 0.9, [0.0, 0.0, 1.0, 1.0]), (2, 0.9, FAR_BOX)]
        for masks in (tensor, tensor.numpy(), codes, text_codes):
            metric = DetectionMetric(ann_file=toy, metric=['bbox', 'segm'])
            metrics = evaluate(metric, META, [sample(1, rows, masks)])
            assert metrics['segm/AP'] == 1
            assert metrics['bbox/AP'] == 0.5
            assert metric.report['per_class'][0]['segm_AP50'] == 1

    def test_no_masks(self, toy: Path) -> None:
        metric = DetectionMetric(ann_file=toy, metric='segm')
        with pytest.raises(KeyError, match='masks'):
            metric.process({}, [sample(1, [(0, 0.9, BOX)])])
        content = json.loads(toy.read_text())
        del content['annotations'][1]['segmentation']
        toy.write_text(json.dumps(content))
        empty = sample(1, [], torch.zeros(0, 48, 64))
        with pytest.raises(ValueError, match='annotation 2'):
            evaluate(metric, META, [empty])


class TestEmpty:
    def test_no_detections_at_all(self, toy: Path) -> None:
        metric = DetectionMetric(ann_file=toy, metric=['bbox', 'segm'])
        metrics = evaluate(metric, META, [sample(i, [], torch.zeros(0, 48, 64)) for i in (1, 2)])
        assert metrics['bbox/AP'] == metrics['segm/AP50_novel'] == 0
        assert metric.report['protocol']['lowest_score'] is None
        json.dumps(metric.report, allow_nan=False)

    def test_no_images_at_all(self, toy: Path) -> None:
        assert math.isnan(evaluate(DetectionMetric(ann_file=toy), META, [])['bbox/AP'])


class TestReport:
    def test_protocol_and_registry(self, toy: Path, tmp_path: Path) -> None:
        dataset = OpenVocabularyDataset(
            ann_file=str(toy),
            data_prefix={'img': str(toy.parent / 'images')},
            vocabulary={'names': NAMES, 'novel': ['owl']},
            test_mode=True,
        )
        out_file = tmp_path / 'out' / 'metrics.json'
        config = {
            'type': 'ovd.DetectionMetric',
            'out_file': str(out_file),
            'protocol': {'templates': 'vild63'},
        }
        metric = METRICS.build(config)
        metric.protocol['checkpoint'] = 'a.pth'
        evaluator = Evaluator(metric)
        evaluator.dataset_meta = dataset.metainfo
        evaluator.process(
            data_samples=[sample(1, [(0, 0.25, BOX)]), sample(2, [(1, 0.5, BOX), (0, 0.75, BOX)])]
        )
        assert evaluator.evaluate(2)['bbox/AP_novel'] == 0
        report = json.loads(out_file.read_text())
        assert report == metric.report
        protocol = report['protocol']
        assert protocol['annotations'] == str(toy)
        assert (protocol['classes_competing'], protocol['classes_base'], protocol['classes_novel']) == (
            3,
            2,
            1,
        )
        assert (protocol['split'], protocol['templates'], protocol['checkpoint']) == (
            'vocabulary',
            'vild63',
            'a.pth',
        )
        assert (protocol['max_detections'], protocol['max_detections_per']) == (100, 'image and class')
        assert (protocol['detections'], protocol['most_detections_in_an_image']) == (3, 2)
        assert protocol['lowest_score'] == 0.25
        assert protocol['iou_thresholds'][:2] == [0.5, 0.55]

    def test_bad_input_is_refused_before_predicting(self, toy: Path) -> None:
        with pytest.raises(ValueError, match=r"'bbox'.*'segm'.*'proposal'"):
            DetectionMetric(metric='proposal')
        with pytest.raises(ValueError, match='ann_file'):
            DetectionMetric().dataset_meta = META
        with pytest.raises(FileNotFoundError, match=r'DetectionMetric.*no\.json'):
            DetectionMetric(ann_file='no.json').dataset_meta = META
        with pytest.raises(ValueError, match="'classes'"):
            DetectionMetric(ann_file=toy).dataset_meta = {'palette': None}

    def test_bad_predictions(self, toy: Path) -> None:
        metric = DetectionMetric(ann_file=toy)
        with pytest.raises(ValueError, match='image 1'):
            metric.process({}, [sample(1, [(0, math.nan, BOX)])])
        with pytest.raises(ValueError, match='image 7'):
            evaluate(metric, META, [sample(7, [(0, 0.9, BOX)])])


def random_lvis(seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """40 images with crowds, equal scores and detections near the objects; results in COCO's layout."""
    random = np.random.default_rng(seed)
    content: dict[str, Any] = {'images': [], 'annotations': [], 'categories': []}
    content['categories'] = [{'id': i, 'name': f'c{i}', 'frequency': 'rcf'[i % 3]} for i in range(1, 8)]
    results = []
    for image in range(1, 41):
        content['images'].append({'id': image, 'height': 400, 'width': 400, 'file_name': f'{image}.jpg'})
        for _ in range(random.integers(0, 7)):
            x, y, w, h = random.uniform([0, 0, 5, 5], [160, 160, 230, 230]).round(1).tolist()
            category = int(random.integers(1, 7))
            polygon = [x, y, x + w, y, x + w, y + h]
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': image,
                    'category_id': category,
                    'bbox': [x, y, w, h],
                    'area': w * h / 2,
                    'iscrowd': 0,
                    'segmentation': [polygon],
                }
            )
            if random.random() < 0.1:
                content['annotations'][-1]['iscrowd'] = 1
                code = mask_utils.merge(mask_utils.frPyObjects([polygon], 400, 400))
                content['annotations'][-1]['segmentation'] = {**code, 'counts': code['counts'].decode()}
            for _ in range(random.integers(0, 4)):
                box = (np.array([x, y, w, h]) + random.normal(0, 6, 4)).clip(1).round(1).tolist()
                guess = category if random.random() < 0.7 else int(random.integers(1, 8))
                bx, by, bw, bh = box
                code = mask_utils.merge(
                    mask_utils.frPyObjects([[bx, by, bx + bw, by, bx + bw, by + bh]], 400, 400)
                )
                results.append(
                    {
                        'image_id': image,
                        'category_id': guess,
                        'bbox': box,
                        'score': float(np.float32(random.integers(1, 20) / 20)),
                        'segmentation': {**code, 'counts': code['counts'].decode()},
                    }
                )
    return content, results


def samples_of(content: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Data samples of results; labels are positions among the categories."""
    labels = {category['id']: label for label, category in enumerate(content['categories'])}
    by_image: dict[int, list[dict[str, Any]]] = {image['id']: [] for image in content['images']}
    for result in results:
        by_image[result['image_id']].append(result)
    return [
        sample(
            image,
            [(labels[item['category_id']], item['score'], item['bbox']) for item in items],
            [item['segmentation'] for item in items],
        )
        for image, items in by_image.items()
    ]


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_equal_to_pycocotools(tmp_path: Path, iou_type: str) -> None:
    content, results = random_lvis()
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    drop = 'segmentation' if iou_type == 'bbox' else 'bbox'
    reference = COCOeval(
        truth, truth.loadRes([{k: v for k, v in item.items() if k != drop} for item in results]), iou_type
    )
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    meta = {'classes': [category['name'] for category in content['categories']]}
    metric = DetectionMetric(ann_file=path, metric=[iou_type])
    found = evaluate(metric, meta, samples_of(content, results))
    keys = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')
    values = [found[f'{iou_type}/{key}'] for key in keys] + [found[f'{iou_type}/AR@100']]
    np.testing.assert_allclose(values, [*reference.stats[:6], reference.stats[8]], atol=1e-6)
    assert 0.05 < values[0] < 0.95
    for index in range(7):
        column = reference.eval['precision'][:, :, index, 0, 2]
        value = metric.report['per_class'][index][f'{iou_type}_AP']
        assert value is None if column.max() < 0 else value == pytest.approx(column.mean(), abs=1e-6)


def test_many_passes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = random_lvis(1)
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    meta = {'classes': [category['name'] for category in content['categories']][::-1]}
    content['categories'].reverse()
    whole = evaluate(LVISMetric(ann_file=path), meta, samples_of(content, results))
    monkeypatch.setattr('ovd.evaluation.average_precision._CLASSES_PER_PASS', 2)
    assert evaluate(LVISMetric(ann_file=path), meta, samples_of(content, results)) == whole


class TestLVIS:
    @pytest.fixture
    def federated(self, toy: Path) -> Path:
        """Cats known on both images, owls absent from image 2, dogs unknown; cats of image 1 in part."""
        content = json.loads(toy.read_text())
        for category, frequency in zip(content['categories'], 'fcr'):
            category['frequency'] = frequency
        first, second = content['images']
        first |= {'neg_category_ids': [], 'not_exhaustive_category_ids': [5]}
        second |= {'neg_category_ids': [9], 'not_exhaustive_category_ids': []}
        toy.write_text(json.dumps(content))
        return toy

    def test_unlabelled_images_and_partly_labelled_classes_are_forgiven(self, federated: Path) -> None:
        """Dogs everywhere: not counted. A wrong cat on image 1: forgiven. A wrong owl on image 2: counted."""
        samples = [
            sample(1, [(1, 0.99, BOX), (0, 0.95, FAR_BOX), (0, 0.9, BOX), (2, 0.5, FAR_BOX)]),
            sample(2, [(1, 0.99, BOX), (0, 0.9, BOX), (0, 0.9, FAR_BOX), (2, 0.8, BOX)]),
        ]
        metrics = evaluate(LVISMetric('bbox', ann_file=federated), META, samples)
        assert metrics['bbox/APf'] == 1
        assert metrics['bbox/APr'] == pytest.approx(0.5)  # right in second place of two
        assert math.isnan(metrics['bbox/APc'])
        assert metrics['bbox/AP'] == pytest.approx(0.75)
        assert metrics['bbox/AP_novel'] == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ('change', 'found'),
        [({}, 51 / 101), ({'ignore': 1}, 1), ({'iscrowd': 1}, 51 / 101), ({'area': 0}, 1)],
    )
    def test_annotations_out_of_the_ordinary(
        self, federated: Path, change: dict[str, Any], found: float
    ) -> None:
        content = json.loads(federated.read_text())
        first, second = (
            next(
                item
                for item in content['annotations']
                if item['category_id'] == 5 and item['image_id'] == image['id']
            )
            for image in content['images']
        )
        content['annotations'] = [{**first, 'bbox': [0, 0, 10, 10]}, {**second, **change}]
        federated.write_text(json.dumps(content))
        samples = [sample(first['image_id'], [(0, 0.9, [0, 0, 10, 10])]), sample(second['image_id'], [])]
        metrics = evaluate(LVISMetric('bbox', ann_file=federated), META, samples)
        assert metrics['bbox/APf'] == pytest.approx(found)

    def test_limit_per_image_over_classes_and_fixed_limit_per_class(self, federated: Path) -> None:
        samples = [
            sample(1, [(0, 0.9, BOX), (2, 0.8, FAR_BOX)]),
            sample(2, [(0, 0.7, BOX), (0, 0.6, FAR_BOX)]),
        ]

        def ap(**options: Any) -> dict[str, float]:
            return evaluate(LVISMetric('bbox', ann_file=federated, **options), META, samples)

        assert ap()['bbox/AP'] == 1
        one_per_image = ap(max_detections=1)
        assert one_per_image['bbox/APr'] == 0
        assert one_per_image['bbox/APf'] == pytest.approx(67 / 101)
        one_per_class = ap(fixed_ap=True, max_per_class=1)
        assert one_per_class['bbox/APr'] == 1
        assert one_per_class['bbox/APf'] == pytest.approx(34 / 101)

    def test_protocol(self, federated: Path) -> None:
        metric = LVISMetric('bbox', ann_file=federated, fixed_ap=True)
        evaluate(metric, META, [sample(1, [])])
        protocol = metric.report['protocol']
        assert (protocol['max_detections'], protocol['max_detections_per']) == (10000, 'class')
        assert 'LVIS fixed AP rules' in protocol['evaluator']

    def test_file_without_frequencies(self, toy: Path) -> None:
        with pytest.raises(ValueError):
            evaluate(LVISMetric('bbox', ann_file=toy), META, [sample(1, [])])

    @pytest.mark.parametrize(
        ('name', 'iou_type', 'options'),
        [
            ('bbox_max300', 'bbox', {}),
            ('segm_max300', 'segm', {}),
            ('bbox_max20', 'bbox', {'max_detections': 20}),
            ('segm_max20', 'segm', {'max_detections': 20}),
            ('bbox_fixed_top30_per_class', 'bbox', {'fixed_ap': True, 'max_per_class': 30}),
        ],
    )
    def test_equal_to_the_lvis_api(self, tmp_path: Path, name: str, iou_type: str, options: dict) -> None:
        golden = json.loads(shared_path('goldens/lvis_metric/lvis_a.json').read_text())
        content = golden['ground_truth']
        path = tmp_path / 'a.json'
        path.write_text(json.dumps(content))
        meta = {'classes': [category['name'] for category in content['categories']]}
        samples = samples_of(content, golden['detections'])
        found = evaluate(LVISMetric(iou_type, ann_file=path, **options), meta, samples)
        keys = {'APs': 'AP_small', 'APm': 'AP_medium', 'APl': 'AP_large'}
        for key, value in golden['results'][name].items():
            if key.startswith('AP'):
                assert found[f'{iou_type}/{keys.get(key, key)}'] == pytest.approx(value, abs=1e-6), key
        recall = next(value for key, value in golden['results'][name].items() if key.startswith('AR@'))
        assert next(value for key, value in found.items() if '/AR@' in key) == pytest.approx(recall, abs=1e-6)


class TestVOC:
    def test_area_and_eleven_points_by_hand(self) -> None:
        """Right, wrong, right, of four objects."""
        recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 1 / 2, 2 / 3])
        assert area_under_curve(recall, precision) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
        assert eleven_point_precision(recall, precision) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
        assert area_under_curve(np.zeros(0), np.zeros(0)) == 0
        assert eleven_point_precision(np.zeros(0), np.zeros(0)) == 0

    def run(self, objects: list[tuple[list[float], int]], found: list[tuple[float, list[float]]]) -> Any:
        annotations = [{'image_id': 1, 'bbox': box, 'difficult': difficult} for box, difficult in objects]
        count = len(found)
        detections = Detections(
            np.ones(count, int),
            np.ones(count, int),
            np.array([score for score, _ in found]),
            np.array([box for _, box in found]).reshape(-1, 4),
        )
        recall, precision = precision_recall(annotations, detections, 0.5)
        return recall.tolist(), precision.tolist()

    def test_second_hit_of_an_object_is_wrong(self) -> None:
        assert self.run([(BOX, 0), (FAR_BOX, 0)], [(0.8, BOX), (0.9, BOX), (0.7, FAR_BOX)]) == (
            [0.5, 0.5, 1.0],
            [1.0, 0.5, pytest.approx(2 / 3)],
        )

    def test_difficult_objects_are_passed_over(self) -> None:
        assert self.run([(BOX, 1), (FAR_BOX, 0)], [(0.9, BOX), (0.8, BOX), (0.7, FAR_BOX)]) == ([1.0], [1.0])
        recall, _ = self.run([(BOX, 1)], [(0.9, BOX)])
        assert math.isnan(recall[0])

    def test_iou_of_exactly_one_half_is_a_hit(self) -> None:
        assert self.run([(BOX, 0)], [(0.9, [10.0, 10.0, 10.0, 10.0])]) == ([1.0], [1.0])

    def test_metric(self, toy: Path) -> None:
        """Cat: three objects, found right, wrong, right; the last at IoU 0.6 only; owl missed."""
        samples = [
            sample(1, [(0, 0.9, BOX), (0, 0.8, FAR_BOX)]),
            sample(2, [(0, 0.7, [10.0, 10.0, 12.0, 10.0])]),
        ]
        metric = VOCMetric(ann_file=toy)
        metrics = evaluate(metric, META, samples)
        cat50, cat75 = 1 / 3 + 1 / 3 * 2 / 3, 1 / 3
        assert metrics['voc/AP50_area'] == pytest.approx(cat50 / 2)
        assert metrics['voc/AP75_area'] == pytest.approx(cat75 / 2)
        assert metrics['voc/AP50_11point'] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11 / 2)
        assert metrics['voc/AP75_11point'] == pytest.approx(4 / 11 / 2)
        assert metrics['voc/AP50_area_base'] == pytest.approx(cat50)
        assert metrics['voc/AP50_area_novel'] == 0
        assert metric.report['per_class'][0]['AP50_area'] == pytest.approx(cat50)
        assert (
            'AP50_area' not in metric.report['per_class'][1]
            or metric.report['per_class'][1]['AP50_area'] is None
        )

    def test_image_set_of_xml_files(self, tmp_path: Path) -> None:
        from tests.datasets.test_base_novel import write_voc

        image_set = write_voc(tmp_path, [('diningtable', 0), ('cat', 1), ('cat', 0)])
        meta = {'classes': ['dining table', 'cat']}
        box = [4.0, 6.0, 20.0, 10.0]
        metric = VOCMetric(ann_file=image_set)
        samples = [sample(1, [(0, 0.9, box)]), sample(2, [(1, 0.9, box)]), sample(3, [(1, 0.8, box)])]
        assert evaluate(metric, meta, samples)['voc/AP50_area'] == 1


def worker(rank: int, rendezvous: str, annotations: str, results: Any) -> None:
    """One of two processes: images 1 and 3 or images 2 and, as samplers pad, 1 again."""
    torch.distributed.init_process_group('gloo', init_method=rendezvous, rank=rank, world_size=2)
    metric = DetectionMetric(ann_file=annotations, metric=['bbox', 'segm'])
    metric.dataset_meta = {'classes': [f'c{index}' for index in range(1, 8)]}
    content, detections = random_lvis()
    samples = samples_of(content, detections)[:3]
    for index in ((0, 2), (1, 0))[rank]:
        metric.process({}, [samples[index]])
    metrics = metric.evaluate(3)
    results.put((rank, metrics, bool(metric.report)))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, detections = random_lvis()
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    meta = {'classes': [category['name'] for category in content['categories']]}
    metric = DetectionMetric(ann_file=path, metric=['bbox', 'segm'])
    expected = evaluate(metric, meta, samples_of(content, detections)[:3])
    context = torch.multiprocessing.get_context('spawn')
    results = context.SimpleQueue()
    arguments = (f'file://{tmp_path}/rendezvous', str(path), results)
    processes = [context.Process(target=worker, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for rank, metrics, has_report in sorted(results.get() for _ in processes):
        np.testing.assert_equal(metrics, expected)
        assert has_report == (rank == 0)


def real_coco(folder: str, **options: Any) -> OpenVocabularyDataset:
    return OpenVocabularyDataset(
        data_root=str(shared_path('data/coco_mini')),
        ann_file=f'annotations/instances_{folder}.json',
        data_prefix={'img': folder},
        test_mode=True,
        **options,
    )


@pytest.mark.parametrize(
    'options', [{'vocabulary': 'coco_ov'}, {'vocabulary': 'coco', 'split': 'coco48_17'}], ids=['65', '80']
)
def test_real_coco_photographs_48_17(options: dict[str, Any]) -> None:
    dataset = real_coco('val2017', **options)
    meta = dataset.metainfo
    labels = {category: label for label, category in enumerate(meta['category_ids']) if category is not None}
    samples = perfect_samples(Path(dataset.ann_file), labels, with_masks=True)
    metric = DetectionMetric(metric=['bbox', 'segm'])
    perfect = evaluate(metric, meta, samples)
    for iou_type in ('bbox', 'segm'):
        for key in ('AP', 'AP50', 'AP_base', 'AP50_base', 'AP_novel', 'AP50_novel'):
            assert perfect[f'{iou_type}/{key}'] == pytest.approx(1)

    random = np.random.default_rng(0)
    for each in samples:
        boxes = each['pred_instances']['bboxes']
        each['pred_instances']['bboxes'] = boxes + torch.from_numpy(random.normal(0, 6, boxes.shape)).float()
        each['pred_instances']['scores'] = torch.from_numpy(random.random(len(boxes))).float()
    noisy = evaluate(metric, meta, samples)
    rows = metric.report['per_class']
    groups = {
        group: [
            row['bbox_AP50'] for row in rows if row['group'] == group and row.get('bbox_AP50') is not None
        ]
        for group in ('base', 'novel')
    }
    assert len(groups['base']) <= 48
    assert len(groups['novel']) <= 17
    for group, values in groups.items():
        assert noisy[f'bbox/AP50_{group}'] == pytest.approx(np.mean(values))
        assert 0.1 < np.mean(values) < 1
    assert noisy['bbox/AP50'] == pytest.approx(np.mean(groups['base'] + groups['novel']))
    assert noisy['segm/AP'] == pytest.approx(1)
