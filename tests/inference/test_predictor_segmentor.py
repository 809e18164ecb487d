"""The predictor with a segmentor: every pixel gets one of the user's words, as in the test loop."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from PIL import Image
from pycocotools import mask as coco_mask

from ovd.cli.console import run_tool
from ovd.inference.predictions import Segmentation, find_background
from ovd.inference.predictor import Predictor
from ovd.registry import METRICS
from tests.helpers import ROOT, write_image
from tests.toys.segmentor import write_toy_segmentor

TEST_LOOP = """
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset', data_prefix=dict(img_path=IMAGES, seg_map_path=MAPS),
        raw_classes=['red', 'green', 'blue'], vocabulary=['red', 'green', 'blue'], img_suffix='.png',
        test_mode=True, pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='Resize', scale=(64, 48), keep_ratio=True),
            dict(type='ovd.LoadSegmentation'),
            dict(type='PackSegInputs')]))
test_evaluator = dict(type='ovd.KeepLabels')
test_cfg = dict()
log_level = 'WARNING'
"""


@METRICS.register_module()
class KeepLabels(BaseMetric):
    """Keeps the label maps that the test loop hands to its metrics."""

    kept: list[np.ndarray] = []

    def process(self, data_batch: Any, data_samples: Any) -> None:
        for sample in data_samples:
            KeepLabels.kept.append(sample['pred_sem_seg']['data'][0].numpy())
            self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {'images': float(sum(results))}


def colors_image(height: int = 48, width: int = 64) -> np.ndarray:
    """Red at the left, green at the right, blue in the lower quarter."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, width // 2 :, 1] = 255
    image[-height // 4 :] = (0, 0, 255)
    return image


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(*write_toy_segmentor(tmp_path), device='cpu')


def test_every_pixel_gets_a_word_at_the_original_size(predictor: Predictor) -> None:
    predictor.set_vocabulary('green car, blue, red star')
    (found,) = predictor.predict(colors_image(96, 128), raw=True)
    assert isinstance(found, Segmentation)
    assert found.labels.dtype == np.int64
    assert found.size == (96, 128)
    assert found.labels[10, 5] == 2
    assert found.labels[10, 120] == 0
    assert found.labels[90, 60] == 1
    assert found.names == ('green car', 'red star', 'blue'), 'the largest first, then by label'
    assert sum(found.areas.values()) == 96 * 128
    assert found.mask('blue').sum() == found.areas['blue'] == 96 * 128 // 4
    assert (found.background, found.background_name, found.background_area) == (None, None, 0)


def test_labels_are_those_of_the_test_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes that the pipeline enlarges and reduces, a stride that needs padding, windows."""
    config, checkpoint = write_toy_segmentor(
        tmp_path, stride=4, background=0.1, test_cfg={'mode': 'slide', 'crop_size': 24, 'stride': 16}
    )
    paths = []
    for index, (height, width) in enumerate([(37, 61), (120, 90), (48, 64)]):
        paths.append(write_image(tmp_path / 'images' / f'{index}.png', height, width, seed=index))
        (tmp_path / 'maps').mkdir(exist_ok=True)
        Image.fromarray(np.zeros((height, width), np.uint8)).save(tmp_path / 'maps' / f'{index}.png')
    loop = TEST_LOOP.replace('IMAGES', repr(str(tmp_path / 'images')))
    config.write_text(config.read_text() + loop.replace('MAPS', repr(str(tmp_path / 'maps'))))
    spec = importlib.util.spec_from_file_location('tool_test', ROOT / 'tools' / 'test.py')
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    KeepLabels.kept = []
    arguments = [str(config), str(checkpoint), '--work-dir', str(tmp_path / 'work')]
    assert run_tool(tool.main, arguments) == 0, capsys.readouterr().err
    predictions = Predictor(config, checkpoint, device='cpu').predict(paths, raw=True)
    assert len(KeepLabels.kept) == 3
    for prediction, kept in zip(predictions, KeepLabels.kept):
        assert np.array_equal(prediction.labels, kept)
        assert len(np.unique(kept)) > 1


def test_batches_and_sources_do_not_change_the_answer(predictor: Predictor, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f'{i}.png', *((37, 61) if i % 2 else (61, 37)), seed=i) for i in range(4)]
    alone = predictor.predict(paths, raw=True)
    together = predictor.predict([np.asarray(Image.open(path)) for path in paths], batch_size=4, raw=True)
    assert [found.size for found in alone] == [(61, 37), (37, 61)] * 2
    for one, other in zip(alone, together):
        assert np.array_equal(one.labels, other.labels)


def test_own_background_of_the_model_can_be_switched_off(tmp_path: Path) -> None:
    predictor = Predictor(*write_toy_segmentor(tmp_path, background=0.5), device='cpu')
    image = colors_image()
    image[:, :16] = 120
    (found,) = predictor.predict(image, raw=True)
    assert found.background == 3
    assert found.background_name == 'background'
    assert (found.labels[:, :14] == 3).all()
    assert found.background_area == (found.labels == 3).sum()
    assert set(found.names) == set(found.areas) == {'red', 'green', 'blue'}
    (found,) = predictor.set_background(False).predict(image, raw=True)
    assert found.background is None
    assert found.labels.max() == 2
    (found,) = predictor.set_background(True).predict(image, raw=True)
    assert found.background == 3


def test_background_is_refused_where_the_model_has_none(predictor: Predictor) -> None:
    assert not predictor.with_background
    with pytest.raises(ValueError, match='ToySegmentor'):
        predictor.set_background(True)


def test_a_word_can_stand_for_background(predictor: Predictor) -> None:
    predictor.set_vocabulary(['green', 'Other', 'red', 'blue'])
    (found,) = predictor.predict(colors_image(), raw=True)
    assert found.background == 1
    assert found.background_name == 'Other'
    assert 'Other' not in found.names
    assert find_background(('dog', 'others', 'background')) == 2
    assert find_background(('dog', 'mother')) is None


def test_to_dict_is_json_with_a_mask_for_each_word(predictor: Predictor) -> None:
    labels = np.array([[0, 0, 2], [3, 2, 2], [-1, 2, 0]])
    found = Segmentation(labels, ('étoile', 'chat', 'mur'), background=3)
    content = json.loads(json.dumps(found.to_dict()))
    assert (content['height'], content['width'], content['background']) == (3, 3, 3)
    listed = [(s['name'], s['label'], s['area'], s['is_background']) for s in content['segments']]
    assert listed == [('mur', 2, 4, False), ('étoile', 0, 3, False), ('background', 3, 1, True)]
    for segment in content['segments']:
        assert np.array_equal(coco_mask.decode(segment['mask']), labels == segment['label'])
    assert len(found) == 2


def test_shown_words_are_the_labels_of_a_prompt_map(predictor: Predictor) -> None:
    predictor.set_vocabulary({'red round fruit': 'apple', 'green leaf': 'leaf', 'blue': 'sky'})
    (found,) = predictor.predict(colors_image(), raw=True)
    assert set(found.names) == {'apple', 'leaf', 'sky'}
    with pytest.raises(KeyError, match='red round fruit'):
        found.mask('red round fruit')


def test_one_word_and_more_than_255(predictor: Predictor) -> None:
    (found,) = predictor.set_vocabulary(['heart']).predict(colors_image(), raw=True)
    assert found.areas == {'heart': 48 * 64}
    predictor.set_vocabulary([f'green {index}' for index in range(300)] + ['red', 'blue'])
    (found,) = predictor.predict(colors_image(), raw=True)
    assert set(found.names) == {'red', 'green 0', 'blue'}
    assert found.labels.max() == 301


def test_draw_shows_the_words_and_refuses_another_image(predictor: Predictor) -> None:
    (found,) = predictor.predict(colors_image(), raw=True)
    picture = found.draw(colors_image(), predictor.colors())
    assert picture.shape[1] == 640
    assert picture.shape[0] > 480
    with pytest.raises(ValueError, match=r'\(48, 65\)'):
        found.draw(colors_image(48, 65))


def test_selection_of_instances_is_refused(predictor: Predictor) -> None:
    for arguments in ({'score_threshold': 0.3}, {'max_per_image': 3}):
        with pytest.raises(ValueError, match='ToySegmentor'):
            predictor.predict(colors_image(), **arguments)


def test_leftover_tensors_are_a_warning_as_in_the_test_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = write_toy_segmentor(tmp_path)
    torch.save({'state_dict': {'weight': torch.ones(()), 'auxiliary': torch.ones(2)}}, checkpoint)
    predictor = Predictor(config, checkpoint, device='cpu')
    assert predictor.model.weight == 1
    captured = capsys.readouterr()
    assert '1 unexpected: auxiliary' in captured.err + captured.out
