"""Test sets side by side: their own classes and wordings, a score each, the mean, missing ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.structures import InstanceData

from ovd.datasets.detection.own_classes import OwnClassesDataset
from ovd.datasets.named_parts import NamedParts
from ovd.evaluation.named_parts import NamedPartsMetric
from ovd.registry import DATASETS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path, write_coco

NEAR, FAR = [10.0, 10.0, 20.0, 10.0], [40.0, 30.0, 20.0, 10.0]
PIPELINE = [
    {'type': 'ovd.LoadImage'},
    {'type': 'mmdet.PackDetInputs', 'meta_keys': ('img_id', 'ori_shape', 'img_shape')},
]


def write_set(folder: Path, names: list[str], boxes: list[Any], **options: Any) -> Path:
    file = write_coco(folder, names, boxes, **options)
    return file.rename(folder / 'annotations_without_background.json')


def own(folder: Path, **options: Any) -> OwnClassesDataset:
    return OwnClassesDataset(
        ann_file=str(folder / 'annotations_without_background.json'),
        data_prefix={'img': str(folder / 'images')},
        test_mode=True,
        pipeline=PIPELINE,
        **options,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_set(tmp_path / 'animals', ['dog', 'cat'], [[(0, NEAR)], [(1, FAR)]])
    write_set(tmp_path / 'hands', ['Hand'], [[(0, NEAR)]])
    return tmp_path


class TestOwnClasses:
    def test_the_file_says_what_is_asked_for(self, root: Path) -> None:
        dataset = own(root / 'animals')
        assert dataset.metainfo['classes'] == ('dog', 'cat')
        sample = dataset[1]['data_samples']
        assert sample.text == ['dog', 'cat']
        assert 'wordings' not in sample

    def test_wordings_by_name_and_by_id(self, root: Path) -> None:
        prompts = {'cat': {'name': 'kitten'}, 1: {'prefix': 'there is a ', 'suffix': ' in the park'}}
        sample = own(root / 'animals', prompts=prompts)[0]['data_samples']
        assert sample.text == ['dog', 'cat']
        assert sample.wordings == {'cat': prompts['cat'], 'dog': prompts[1]}

    def test_a_category_can_be_left_out(self, root: Path) -> None:
        write_set(root / 'chess', ['  ', 'king'], [[(0, FAR), (1, NEAR)]])
        dataset = own(root / 'chess', prompts={1: None})
        assert dataset.metainfo['classes'] == ('king',)
        assert dataset.metainfo['category_ids'] == (2,)
        assert [instance['bbox_label'] for instance in dataset.get_data_info(0)['instances']] == [0]
        with pytest.raises(ValueError, match=r'1.*prompts=\{1.*None\}'):
            own(root / 'chess')
        write_set(root / 'comment', ['(x)'], [[(0, FAR)]])
        with pytest.raises(ValueError, match=r"'\(x\)'"):
            own(root / 'comment')

    @pytest.mark.parametrize(
        ('prompts', 'message'),
        [
            ({'cow': {'name': 'x'}}, r"'cow'.*'1.*dog'.*'2.*cat'"),
            ({'cat': {'ending': 'x'}}, r"'cat'.*'ending'.*'x'"),
            ({2: {'name': '(x)'}}, r"'\(x\)'"),
        ],
    )
    def test_bad_prompts_are_named(self, root: Path, prompts: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            own(root / 'animals', prompts=prompts)


def joined(root: Path, names: tuple[str, ...] = ('animals', 'hands'), **options: Any) -> NamedParts:
    parts = {name: {'data_root': str(root / name)} for name in names}
    common = {
        'type': 'ovd.OwnClassesDataset',
        'ann_file': 'annotations_without_background.json',
        'data_prefix': {'img': 'images'},
    }
    config = {'type': 'ovd.NamedParts', 'parts': parts, 'common': common, 'pipeline': PIPELINE, **options}
    return DATASETS.build(config)


def predicted(dataset: NamedParts, index: int, label: int, box: list[float]) -> dict[str, Any]:
    """A sample of the data set with one detection, [x, y, w, h]."""
    sample = dataset[index]['data_samples']
    x, y, width, height = box
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[x, y, x + width, y + height]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([label]),
    )
    return sample.to_dict()


class TestNamedParts:
    def test_samples_say_where_they_come_from(self, root: Path) -> None:
        dataset = joined(root)
        assert [dataset[index]['data_samples'].part for index in range(3)] == ['animals', 'animals', 'hands']
        assert [dataset[index]['data_samples'].text for index in (0, 2)] == [['dog', 'cat'], ['Hand']]
        assert dataset.metainfo['parts']['hands']['classes'] == ('Hand',)

    def test_each_is_scored_for_itself(self, root: Path) -> None:
        dataset = joined(root)
        metric = NamedPartsMetric({'type': 'ovd.DetectionMetric', 'metric': 'bbox'})
        metric.dataset_meta = dataset.metainfo
        # Image 1 of the animals and image 1 of the hands are two images; only the hand is misplaced.
        rows = [(0, 0, NEAR), (1, 1, FAR), (2, 0, FAR)]
        for index, label, box in rows:
            metric.process({}, [predicted(dataset, index, label, box)])
        scores = metric.evaluate(3)
        assert (scores['animals/bbox/AP50'], scores['hands/bbox/AP50']) == (1, 0)
        assert scores['mean/bbox/AP50'] == scores['median/bbox/AP50'] == 0.5
        first, second = metric.report['per_part']
        assert (first['part'], first['bbox/AP50']) == ('animals', 1)
        assert second['protocol']['annotations'].startswith(str(root / 'hands'))
        assert metric.report['protocol']['missing_parts'] == {}

    def test_a_part_without_a_value_is_not_in_the_mean(self, root: Path) -> None:
        write_set(root / 'empty', ['cow'], [[]])
        dataset = joined(root, ('animals', 'empty'))
        metric = NamedPartsMetric({'type': 'ovd.DetectionMetric', 'metric': 'bbox'})
        metric.dataset_meta = dataset.metainfo
        metric.process({}, [predicted(dataset, index, index, box) for index, box in enumerate([NEAR, FAR])])
        metric.process({}, [predicted(dataset, 2, 0, NEAR)])
        scores = metric.evaluate(3)
        assert math.isnan(scores['empty/bbox/AP'])
        assert scores['mean/bbox/AP'] == 1
        assert metric.report['per_part'][1]['bbox/AP'] is None

    def test_missing_parts_are_named(self, root: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'1.*2.*\(.*cows.*json\)'):
            joined(root, ('animals', 'cows'))
        dataset = joined(root, ('animals', 'cows'), missing='drop')
        assert list(dataset.metainfo['missing_parts']) == ['cows']
        metric = NamedPartsMetric({'type': 'ovd.DetectionMetric', 'metric': 'bbox'})
        metric.dataset_meta = dataset.metainfo
        metric.process({}, [predicted(dataset, index, index, box) for index, box in enumerate([NEAR, FAR])])
        scores = metric.evaluate(2)
        assert scores['mean_of_1/bbox/AP'] == 1
        assert 'mean/bbox/AP' not in scores
        assert list(metric.report['protocol']['missing_parts']) == ['cows']
        json.dumps(metric.report)
        with pytest.raises(FileNotFoundError, match=r'2.*2'):
            joined(root, ('cows', 'pigs'), missing='drop')
        with pytest.raises(KeyError, match='ann_file'):
            NamedParts({'cows': {'type': 'ovd.OwnClassesDataset'}}, pipeline=[])

    def test_other_data_are_refused(self) -> None:
        with pytest.raises(ValueError):
            NamedPartsMetric({'type': 'ovd.PhraseRecall'}).dataset_meta = {'classes': ['a']}


def test_photographs_with_the_80_classes_of_their_file() -> None:
    folder = shared_path('data/coco_mini')
    dataset = OwnClassesDataset(
        ann_file=str(folder / 'annotations' / 'instances_val2017.json'),
        data_prefix={'img': str(folder / 'val2017')},
        prompts={'person': {'name': 'human'}, 18: {'suffix': ' on a leash'}},
        test_mode=True,
        pipeline=PIPELINE,
    )
    assert len(dataset) == 79
    sample = dataset[0]['data_samples']
    assert tuple(sample.text) == Vocabulary.parse('coco').names
    assert sample.wordings == {'person': {'name': 'human'}, 'dog': {'suffix': ' on a leash'}}
