"""Answers as values of other packages, as files and as pictures; tiles; COCO results of a test run."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovd.evaluation.coco_results import CocoResults, instance_entries, map_entries
from ovd.inference.pictures.tiling import predict_tiled, tile_windows
from ovd.inference.pictures.writers import decode_mask
from ovd.inference.predictions import Grounding, Phrase, Prediction, Segmentation, non_maximum


def prediction(**changes: Any) -> Prediction:
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1:3, 2:6] = masks[1, :2, :2] = True
    values: dict[str, Any] = {
        'boxes': np.array([[2, 1, 6, 3], [0, 0, 2, 2]], np.float32),
        'scores': np.array([0.9, 0.4], np.float32),
        'labels': np.array([1, 0]),
        'names': ('dog', 'cat'),
        'masks': masks,
        'size': (6, 8),
    }
    return Prediction(**values | changes)


def segmentation() -> Segmentation:
    labels = np.full((6, 8), 2)
    labels[:2] = 0
    labels[2:4, :4] = 1
    return Segmentation(labels, ('sky', 'tree'), background=2)


def test_coco_entries() -> None:
    entries = prediction().to_coco(7, [11, 12])
    assert [(entry['image_id'], entry['category_id'], entry['bbox']) for entry in entries] == [
        (7, 12, [2, 1, 4, 2]),
        (7, 11, [0, 0, 2, 2]),
    ]
    assert entries[0]['score'] == float(np.float32(0.9))
    assert (decode_mask(entries[0]['segmentation']) == prediction().masks[0]).all()
    assert [entry['category_id'] for entry in prediction(masks=None).to_coco(7)] == [2, 1]
    assert 'segmentation' not in prediction(masks=None).to_coco(7)[0]
    stuff = segmentation().to_coco(3)
    assert [(entry['category_id'], decode_mask(entry['segmentation']).sum()) for entry in stuff] == [
        (1, 16),
        (2, 8),
    ]
    assert instance_entries(1, np.zeros((0, 4)), np.zeros(0), []) == []
    assert map_entries(1, np.full((2, 2), -1), [1, 2]) == []


def test_supervision() -> None:
    found = prediction().to_supervision()
    assert found.xyxy.tolist() == [[2, 1, 6, 3], [0, 0, 2, 2]]
    assert found.class_id.tolist() == [1, 0]
    assert found['class_name'].tolist() == ['dog', 'cat']
    assert (found.mask == prediction().masks).all()
    assert len(prediction().keep(np.zeros(0, int)).to_supervision()) == 0
    words = segmentation().to_supervision()
    assert words['class_name'].tolist() == ['sky', 'tree']
    assert words.xyxy.tolist() == [[0, 0, 8, 2], [0, 2, 4, 4]]
    assert words.confidence is None


def test_pandas() -> None:
    table = prediction().to_pandas()
    assert table.columns.tolist() == ['name', 'label', 'score', 'x1', 'y1', 'x2', 'y2']
    assert table.iloc[0].tolist() == ['dog', 1, pytest.approx(0.9), 2, 1, 6, 3]
    areas = segmentation().to_pandas()
    assert areas['name'].tolist() == ['sky', 'tree']
    assert areas['share'].tolist() == [16 / 48, 8 / 48]


def test_data_samples_of_the_hosts() -> None:
    sample = prediction().to_data_sample()
    assert torch.equal(sample.pred_instances.bboxes, torch.tensor([[2.0, 1, 6, 3], [0, 0, 2, 2]]))
    assert sample.pred_instances.masks.dtype == torch.bool
    assert sample.ori_shape == (6, 8)
    assert 'masks' not in prediction(masks=None).to_data_sample().pred_instances
    labels = segmentation().to_data_sample().pred_sem_seg.data
    assert (labels[0].numpy() == segmentation().labels).all()


def test_a_picture_of_an_answer(tmp_path: Path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(ValueError, match='image'):
        prediction().plot()
    assert prediction()._repr_png_() is None
    for source in (image, Image.fromarray(image)):
        answer = prediction(source=source)
        drawn = answer.draw(image)
        assert (np.asarray(answer.plot()) == drawn).all()
        shown = answer._repr_png_()
        assert shown is not None
        assert (np.asarray(Image.open(io.BytesIO(shown))) == drawn).all()
    path = tmp_path / 'a.png'
    Image.fromarray(image).save(path)
    answer = prediction(source=str(path))
    assert answer.save(tmp_path / 'out' / 'b.PNG') == tmp_path / 'out' / 'b.PNG'
    assert (np.asarray(Image.open(tmp_path / 'out' / 'b.PNG')) == drawn).all()
    answer.save(tmp_path / 'b.json')
    assert json.loads((tmp_path / 'b.json').read_text()) == json.loads(answer.to_json()) == answer.to_dict()
    with pytest.raises(ValueError, match=r'b\.txt'):
        answer.save(tmp_path / 'b.txt')
    assert segmentation().plot(image).size == Image.fromarray(segmentation().draw(image)).size


def test_answers_to_sentences_keep_their_phrases() -> None:
    values = vars(prediction())
    grounding = Grounding(
        **values, caption='a dog and a cat', phrases=(Phrase('a cat', ()), Phrase('a dog', ()))
    )
    assert grounding.keep(np.array([1])).caption == 'a dog and a cat'
    assert grounding.select(0.5).to_coco(1)[0]['category_id'] == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ('supervision', 'pandas'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'ovd\[export\]'):
        prediction().to_supervision()
    with pytest.raises(ImportError, match=r'ovd\[export\]'):
        prediction().to_pandas()


def test_suppression_within_and_across_names() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.7], np.float32), np.array([0, 0, 1])
    assert non_maximum(boxes, scores, labels, 0.5).tolist() == [1, 2]
    found = Prediction(boxes, scores, labels, ('a', 'a', 'b'), None, (10, 10))
    assert found.suppress(0.5).names == ('a', 'b')
    assert found.suppress(0.5, across_names=True).names == ('a',)
    assert found.suppress(0.95).names == ('a', 'b', 'a')


# Tiles.


def bright_boxes(images: list[np.ndarray]) -> list[Prediction]:
    """A detector that finds each square of one colour, wherever it is and however much of it is seen."""
    found = []
    for image in images:
        values = [value for value in np.unique(image[..., 0]) if value]
        boxes = []
        for value in values:
            rows, columns = np.nonzero(image[..., 0] == value)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        masks = np.array([image[..., 0] == value for value in values]).reshape(-1, *image.shape[:2])
        found.append(
            Prediction(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array([value / 255 for value in values], np.float32),
                np.zeros(len(values), int),
                ('square',) * len(values),
                masks,
                image.shape[:2],
            )
        )
    return found


def test_windows_cover_and_overlap() -> None:
    windows = tile_windows((100, 250), 100, 0.2)
    assert windows == [(0, 0, 100, 100), (80, 0, 180, 100), (150, 0, 250, 100)]
    assert tile_windows((50, 60), 100, 0.2) == [(0, 0, 60, 50)]
    for size in ((301, 517), (64, 640)):
        covered = np.zeros(size, int)
        for x1, y1, x2, y2 in tile_windows(size, 64, 0.25):
            covered[y1:y2, x1:x2] += 1
        assert covered.min() >= 1
    with pytest.raises(ValueError, match='overlap'):
        tile_windows((10, 10), 5, 1.0)


@pytest.mark.parametrize('seed', range(5))
def test_tiles_find_each_object_once_with_its_own_box(seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = np.zeros((200, 300, 3), np.uint8)
    taken = np.zeros((200, 300), bool)
    truth = {}
    for value in range(40, 240, 10):
        side = int(generator.integers(3, 19))  # two pixels less than the overlap of 20
        x, y = int(generator.integers(0, 300 - side)), int(generator.integers(0, 200 - side))
        if not taken[y : y + side, x : x + side].any():
            taken[max(0, y - 1) : y + side + 1, max(0, x - 1) : x + side + 1] = True
            image[y : y + side, x : x + side] = value
            truth[value] = [x, y, x + side, y + side]

    def nearsighted(images: list[np.ndarray]) -> list[Prediction]:
        """Finds nothing on the whole picture."""
        blank = [np.zeros_like(each) if each.shape[0] == 200 else each for each in images]
        return bright_boxes(blank)

    found = predict_tiled(nearsighted, image, 80, 0.25)
    assert {round(255 * float(score)): box.tolist() for score, box in zip(found.scores, found.boxes)} == truth
    assert len(found) == len(truth)
    for box, mask in zip(found.boxes.astype(int), found.masks):
        assert mask.sum() == mask[box[1] : box[3], box[0] : box[2]].sum() == (box[2] - box[0]) ** 2


def test_an_object_larger_than_a_tile_comes_from_the_whole_picture() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[20:180, 30:280] = 200
    found = predict_tiled(bright_boxes, image, 80, 0.25)
    assert found.boxes.tolist() == [[30, 20, 280, 180]]


def test_maps_take_each_pixel_from_the_tile_that_sees_most_around_it() -> None:
    calls = []

    def number_tiles(images: list[np.ndarray]) -> list[Segmentation]:
        calls.append(len(images))
        return [
            Segmentation(np.full(each.shape[:2], index), ('a', 'b', 'c')) for index, each in enumerate(images)
        ]

    found = predict_tiled(number_tiles, np.zeros((10, 24, 3), np.uint8), 12, 0.5)
    assert calls == [3]  # starts at 0, 6 and 12
    row = found.labels[5]
    assert row[:9].tolist() == [0] * 9  # of 6..11, the first tile sees up to 11, the second from 6 on
    assert row[9:15].tolist() == [1] * 6
    assert row[15:].tolist() == [2] * 9
    assert (found.labels == row).all()


# Results of a test run.


def test_the_metric_writes_what_the_answer_writes(tmp_path: Path) -> None:
    metric = CocoResults(tmp_path / 'dump.json')
    metric.dataset_meta = {'classes': ('cat', 'dog'), 'category_ids': (11, 12)}
    sample = prediction().to_data_sample()
    sample.set_metainfo({'img_id': 7})
    metric.process(None, [sample.to_dict()])
    metric.evaluate(1)
    assert json.loads((tmp_path / 'dump.json').read_text()) == json.loads(
        json.dumps(prediction().to_coco(7, [11, 12]))
    )
    with pytest.raises(ValueError, match='classes'):
        CocoResults(tmp_path / 'x.json').dataset_meta = {'parts': {}}
