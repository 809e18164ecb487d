"""Sentences with boxes in MDETR's layout: phrases, referring expressions, their errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ovd.datasets.grounding.sentences import PhraseSentences, ReferringExpressions, SentenceDataset
from ovd.evaluation.phrases import ReferringPrecision
from tests.helpers import write_image

CAPTION = 'A man and his dog near a car'


def entry(**changes: Any) -> dict[str, Any]:
    known = {'id': 7, 'file_name': 'a.png', 'height': 40, 'width': 60, 'caption': CAPTION}
    phrases = {'tokens_positive_eval': [[[0, 5]], [[10, 17]], [[23, 28]]], 'dataset_name': 'flickr'}
    return {**known, **phrases, **changes}


def box(phrase_ids: Any, image_id: int = 7, bbox: tuple[float, ...] = (10, 5, 20, 30)) -> dict[str, Any]:
    return {'id': 1, 'image_id': image_id, 'bbox': list(bbox), 'phrase_ids': phrase_ids}


def read(
    folder: Path, kind: type[SentenceDataset], images: list[Any], annotations: list[Any], **options: Any
) -> SentenceDataset:
    write_image(folder / 'a.png', 40, 60)
    file = folder / 'sentences.json'
    file.write_text(json.dumps({'images': images, 'annotations': annotations}))
    return kind(ann_file=str(file), data_prefix={'img': str(folder)}, test_mode=True, **options)


def found(dataset: SentenceDataset, index: int = 0) -> list[tuple[int, list[float]]]:
    instances = dataset.get_data_info(index)['instances']
    return [(instance['bbox_label'], instance['bbox']) for instance in instances]


def test_phrases_of_a_caption(tmp_path: Path) -> None:
    far = (40, 0, 10, 10)
    dataset = read(tmp_path, PhraseSentences, [entry()], [box(0), box(2, bbox=far), box([0, 1])])
    assert found(dataset) == [
        (0, [10, 5, 30, 35]),
        (2, [40, 0, 50, 10]),
        (0, [10, 5, 30, 35]),
        (1, [10, 5, 30, 35]),
    ]
    info = dataset.get_data_info(0)
    assert (info['text'], info['img_id']) == (CAPTION, 7)
    assert [CAPTION[slice(*ranges[0])] for ranges in info['tokens_positive'].values()] == [
        'A man',
        'his dog',
        'a car',
    ]
    assert dataset.metainfo['ann_file'].endswith('sentences.json')


def test_a_phrase_without_boxes_does_not_shift_the_others(tmp_path: Path) -> None:
    dataset = read(tmp_path, PhraseSentences, [entry()], [box(2)])
    assert [label for label, _ in found(dataset)] == [2]
    assert dataset.get_data_info(0)['tokens_positive'] == {2: [[23, 28]]}


def test_phrase_ids_of_another_count_are_ranked(tmp_path: Path) -> None:
    dataset = read(tmp_path, PhraseSentences, [entry()], [box(190), box(12), box(57)])
    assert [label for label, _ in found(dataset)] == [2, 0, 1]


def test_a_referring_expression_is_one_phrase(tmp_path: Path) -> None:
    images = [
        entry(caption=' the man on the left ', dataset_name='refcoco'),
        entry(id=8, caption='man', dataset_name='refcocog'),
    ]
    boxes = [box(0), box(0, image_id=8)]
    dataset = read(tmp_path, ReferringExpressions, images, boxes)
    assert len(dataset) == 2
    assert dataset.get_data_info(0)['tokens_positive'] == {0: [[1, 20]]}
    assert found(dataset) == [(0, [10, 5, 30, 35])]
    only = read(tmp_path, ReferringExpressions, images, boxes, only='refcocog')
    assert [info['img_id'] for info in only] == [8]


@pytest.mark.parametrize(
    ('image', 'annotation', 'message'),
    [
        (entry(tokens_positive_eval=[[[0, 99]]]), box(0), r'image 7: .*\[0, 99\)'),
        (entry(tokens_positive_eval=[[[0, 4]]]), box(0), "image 7: .*'A ma'"),
        (
            entry(),
            box(0, bbox=(60, 5, 20, 30)),
            r'image 7: box \[60, 5, 20, 30\] has no area in the image of 60',
        ),
        (entry(), box(0, bbox=(10, 5, 0, 30)), 'has no area'),
        (entry(), box([0, 9]), r'phrase_ids \[0, 9\], its sentence 3 phrases'),
        ({'id': 7, 'file_name': 'a.png'}, box(0), "number 0 of the images has no 'height'"),
        (entry(), {'image_id': 7}, "number 0 of the annotations has no 'bbox'"),
        (entry(), {'image_id': 7, 'bbox': [1, 1, 5, 5]}, "image 7: a box has no 'phrase_ids'"),
        (entry(tokens_positive_eval=-1), box(0), 'image 7: tokens_positive_eval is -1, expected a list'),
        (entry(caption=None), box(0), "number 0 of the images: 'caption' is None"),
        (entry(height='40'), box(0), "number 0 of the images: 'height' is '40'"),
        (7, box(0), 'number 0 of the images is 7, expected an object'),
        (entry(), box(0, image_id=8), 'number 0 of the annotations is of no image: 8'),
        (entry(), box('0'), "image 7: phrase_ids is '0', expected whole numbers"),
        (entry(), box(0, bbox=(10, 5, float('inf'), 9)), 'image 7: expected a box'),
        (entry(), box(0, bbox=(10, 5)), r'image 7: expected a box \[x, y, width, height\], got \[10, 5\]'),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, image: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, PhraseSentences, [image], [annotation])


def test_bad_regions_can_be_left_out(tmp_path: Path) -> None:
    image = entry(tokens_positive_eval=[[[0, 4]], [[10, 17]], [[23, 28]]])
    boxes = [box(0), box(1), box(2, bbox=(60, 5, 20, 30))]
    dataset = read(tmp_path, PhraseSentences, [image], boxes, bad_regions='drop')
    assert dataset.get_data_info(0)['tokens_positive'] == {1: [[10, 17]]}
    assert [label for label, _ in found(dataset)] == [1]


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'annotation file .*none\.json does not exist'):
        PhraseSentences(ann_file=str(tmp_path / 'none.json'))
    with pytest.raises(FileNotFoundError, match=r'1 images are not on disk, the first is .*b\.png'):
        read(tmp_path, PhraseSentences, [entry(file_name='b.png')], [])
    with pytest.raises(ValueError, match=r"has no sentences of 'refcoco'; it has 'flickr'"):
        read(tmp_path, ReferringExpressions, [entry()], [], only='refcoco')
    with pytest.raises(ValueError, match='some images share an id'):
        read(tmp_path, PhraseSentences, [entry(), entry()], [])
    (tmp_path / 'list.json').write_text('[]')
    with pytest.raises(ValueError, match="not in MDETR's layout"):
        PhraseSentences(ann_file=str(tmp_path / 'list.json'))


def test_precision_by_hand() -> None:
    """The first object is found in second place, the other one never."""
    near, far = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    samples = []
    for truth in (near, [20.0, 0.0, 30.0, 10.0]):
        samples.append(
            {
                'pred_instances': {
                    'labels': torch.zeros(2, dtype=torch.long),
                    'scores': torch.tensor([0.4, 0.8]),
                    'bboxes': torch.tensor([near, far]),
                },
                'gt_instances': {'labels': torch.zeros(1, dtype=torch.long), 'bboxes': torch.tensor([truth])},
            }
        )
    metric = ReferringPrecision(ks=(1, 2))
    metric.dataset_meta = {'ann_file': 'x.json'}
    metric.process(None, samples)
    scores = metric.evaluate(2)
    assert scores == {
        'referring/precision@1': 0.0,
        'referring/precision@2': 0.5,
        'referring/precision@all': 0.5,
    }
    assert metric.report['protocol']['annotations'] == 'x.json'


def test_equal_to_mmdet(tmp_path: Path) -> None:
    """Random boxes around the true ones, several sets in one file, shuffled scores."""
    from mmdet.evaluation.metrics import RefExpMetric

    random = torch.Generator().manual_seed(0)
    names = ('refcoco', 'refcoco+', 'refcocog')
    images = [entry(id=number, dataset_name=names[number % 3]) for number in range(30)]
    annotations = [{'id': i, 'image_id': i, 'category_id': 1, 'bbox': [10, 5, 20, 30]} for i in range(30)]
    file = tmp_path / 'mixed.json'
    file.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': [{'id': 1}]}))
    theirs = RefExpMetric(str(file))
    ours = {name: ReferringPrecision() for name in names}
    truth = torch.tensor([[10.0, 5.0, 30.0, 35.0]])
    for image in images:
        noise = torch.randn(12, 4, generator=random) * 8
        scores = torch.rand(12, generator=random).sort(descending=True).values
        found = {'bboxes': truth + noise, 'scores': scores, 'labels': torch.zeros(12, dtype=torch.long)}
        sample = {
            'img_id': image['id'],
            'pred_instances': found,
            'gt_instances': {'bboxes': truth, 'labels': torch.zeros(1, dtype=torch.long)},
        }
        theirs.process({}, [sample])
        ours[image['dataset_name']].process({}, [sample])
    expected = theirs.compute_metrics(theirs.results)
    for name, metric in ours.items():
        scores = metric.evaluate(10)
        for k in (1, 5, 10):
            assert scores[f'referring/precision@{k}'] == pytest.approx(expected[f'{name}_precision@{k}'])
    assert 0 < expected['refcoco_precision@1'] < expected['refcoco_precision@10']
