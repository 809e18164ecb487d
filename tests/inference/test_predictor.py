"""The predictor: names, order, batches, sources and refusals, on a toy whose answers are known."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from ovd.config import load_config
from ovd.datasets.images import BrokenImageError
from ovd.inference.predictor import Prediction, Predictor
from tests.helpers import write_image
from tests.toys.predictor import CONFIG, write_toy


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(*write_toy(tmp_path), device='cpu')


def flat(red: int, green: int, blue: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (height, width, 3)).copy()


def test_names_scores_and_frame(predictor: Predictor) -> None:
    predictor.set_vocabulary('green, heart, red car')
    (prediction,) = predictor.predict(flat(255, 51, 0, 96, 128), raw=True)
    assert prediction.names == ('red car', 'green', 'heart')
    assert prediction.labels.tolist() == [2, 0, 1]
    np.testing.assert_allclose(prediction.scores, [1.0, 0.2, 0.05], atol=1e-6)
    assert prediction.boxes.tolist() == [[0, 0, 128, 96]] * 3
    assert prediction.masks is not None
    assert prediction.masks.shape == (3, 96, 128)
    assert prediction.size == (96, 128)


def test_vocabulary_of_the_config_is_the_default(predictor: Predictor) -> None:
    (prediction,) = predictor.predict(flat(255, 0, 0), raw=True)
    assert set(prediction.names) == {'red', 'green'}


def test_shown_names_are_the_labels_of_a_prompt_map(predictor: Predictor) -> None:
    predictor.set_vocabulary({'red round fruit': 'apple'})
    (prediction,) = predictor.predict(flat(255, 0, 0), raw=True)
    assert prediction.names == ('apple',)
    assert prediction.scores.tolist() == [1.0]
    assert list(predictor.colors()) == ['apple']


def test_set_vocabulary_returns_the_predictor(predictor: Predictor) -> None:
    assert predictor.set_vocabulary(['blue']).predict(flat(0, 0, 255), raw=True)[0].names == ('blue',)


@pytest.mark.parametrize('batch_size', [1, 2, 3, 10])
def test_batches_keep_order_and_are_never_padded(predictor: Predictor, batch_size: int) -> None:
    """Images of two sizes alternate; each keeps its own answer and a batch holds one size only."""
    images = [flat(51 * i, 0, 0, *((48, 64) if i % 2 else (64, 48))) for i in range(5)]
    predictor.set_vocabulary(['red'])
    predictions = predictor.predict(images, batch_size=batch_size, raw=True)
    np.testing.assert_allclose([p.scores[0] for p in predictions], [0, 0.2, 0.4, 0.6, 0.8], atol=1e-6)
    assert [p.size for p in predictions] == [image.shape[:2] for image in images]
    assert predictor.model.batch_sizes == {1: [1] * 5, 2: [1] * 5, 3: [2, 1, 1, 1], 10: [3, 2]}[batch_size]


def test_path_array_and_pil_image_agree(predictor: Predictor, tmp_path: Path) -> None:
    path = write_image(tmp_path / 'a.png', 37, 61)
    image = Image.open(path)
    predictions = predictor.predict([path, str(path), np.asarray(image), image], raw=True)
    for other in predictions[1:]:
        assert np.array_equal(other.scores, predictions[0].scores)
        assert np.array_equal(other.boxes, predictions[0].boxes)
        assert other.size == (37, 61)


def test_threshold_and_limit(predictor: Predictor) -> None:
    predictor.set_vocabulary(['red', 'green', 'blue'])
    image = flat(204, 102, 153)
    assert predictor.predict(image, score_threshold=0.5, raw=True)[0].names == ('red', 'blue')
    assert predictor.predict(image, max_per_image=1, raw=True)[0].names == ('red',)
    nothing = predictor.predict(image, score_threshold=0.9, raw=True)[0]
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks is not None
    assert nothing.masks.shape == (0, 48, 64)
    assert nothing.to_dict()['instances'] == []
    assert nothing.draw(image).shape == (480, 640, 3)


def test_no_images_and_one_word(predictor: Predictor) -> None:
    assert predictor.predict([], raw=True) == []
    assert predictor.set_vocabulary('heart').predict(flat(1, 2, 3), raw=True)[0].names == ('heart',)


def test_to_dict_is_json_with_coco_masks(predictor: Predictor) -> None:
    mask = np.zeros((1, 5, 7), bool)
    mask[0, 1:3, 2:6] = True
    prediction = Prediction(
        boxes=np.array([[2, 1, 6, 3]], np.float32),
        scores=np.array([0.25], np.float32),
        labels=np.array([4]),
        names=('étoile',),
        masks=mask,
        size=(5, 7),
    )
    content = json.loads(json.dumps(prediction.to_dict()))
    (instance,) = content['instances']
    assert (content['height'], content['width']) == (5, 7)
    assert instance['name'] == 'étoile'
    assert instance['label'] == 4
    assert instance['score'] == 0.25
    assert instance['box'] == [2, 1, 6, 3]
    assert np.array_equal(coco_mask.decode(instance['mask']), mask[0])


def test_draw_refuses_another_image(predictor: Predictor) -> None:
    (prediction,) = predictor.predict(flat(9, 9, 9), raw=True)
    with pytest.raises(ValueError, match=r'image of \(48, 64\), got one of \(48, 65\)'):
        prediction.draw(flat(9, 9, 9, 48, 65))


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((4, 4), np.uint8), r'image 1: expected RGB, uint8 \[H, W, 3\], got uint8 \[4, 4\]'),
        (np.zeros((4, 4, 4), np.uint8), r'got uint8 \[4, 4, 4\]'),
        (np.zeros((4, 4, 3), np.float32), 'got float32'),
        (np.zeros((0, 4, 3), np.uint8), r'got uint8 \[0, 4, 3\]'),
        (7, 'image 1: expected path, array or PIL image, got int'),
    ],
)
def test_bad_images_are_named(predictor: Predictor, image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict([flat(0, 0, 0), image], raw=True)  # type: ignore[list-item]


def test_pil_images_of_every_kind_are_read_as_files_are(predictor: Predictor, tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((48, 64), 128 * 257, np.uint16))
    grey.save(tmp_path / 'a.png')
    one, two = predictor.set_vocabulary('red').predict([grey, tmp_path / 'a.png'], raw=True)
    assert one.scores.tolist() == two.scores.tolist() == pytest.approx([128 / 255])
    with pytest.raises(ValueError, match='image 0: floating-point pixels have no defined range'):
        predictor.predict(Image.fromarray(np.ones((4, 4), np.float32)), raw=True)


def test_an_image_of_no_height_at_input_size_is_named(predictor: Predictor, tmp_path: Path) -> None:
    path = write_image(tmp_path / 'line.png', 1, 3000)
    for image, name in ((path, 'line.png'), (Image.open(path), '0')):
        with pytest.raises(BrokenImageError, match=f'{name} is too long and thin for the test pipeline'):
            predictor.predict(image, raw=True)


def test_missing_and_damaged_files_are_named(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nowhere\.png'):
        predictor.predict('nowhere.png', raw=True)
    (tmp_path / 'empty.png').touch()
    with pytest.raises(ValueError, match=r'empty\.png'):
        predictor.predict([flat(0, 0, 0), tmp_path / 'empty.png'], raw=True)


def test_batch_size_zero_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
        predictor.predict(flat(0, 0, 0), batch_size=0, raw=True)


def test_words_are_refused_by_index(predictor: Predictor) -> None:
    before = predictor.vocabulary
    with pytest.raises(ValueError, match='red'):
        predictor.set_vocabulary(['red', 'green', 'red'])
    assert predictor.vocabulary is before


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config, _ = write_toy(tmp_path)
    torch.save({'state_dict': {'head.weight': torch.ones(2)}}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth'):
        Predictor(config, tmp_path / 'other.pth')


def test_a_checkpoint_may_hold_more_than_the_model_and_not_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checkpoint = write_toy(tmp_path)
    warned: list[str] = []
    monkeypatch.setattr(
        'ovd.checkpoints.loading.current_logger', lambda: SimpleNamespace(warning=warned.append)
    )
    torch.save({'weight': torch.ones(()), 'teacher.weight': torch.ones(2)}, checkpoint)
    predictor = Predictor(config, checkpoint, 'cpu').set_vocabulary('red')
    assert predictor.predict(flat(255, 0, 0), raw=True)[0].scores.tolist() == [1]
    assert len(warned) == 1
    assert '1 unexpected: teacher.weight' in warned[0]
    torch.save({'other.weight': torch.ones(())}, checkpoint)
    with pytest.raises(ValueError, match='1 missing: weight'):
        Predictor(config, checkpoint, 'cpu')


def test_missing_config_and_checkpoint_are_named(tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'absent\.pth'):
        Predictor(config, tmp_path / 'absent.pth')
    with pytest.raises(FileNotFoundError, match=r'absent\.py'):
        Predictor(tmp_path / 'absent.py', checkpoint)


@pytest.mark.parametrize('device', ['tpu9', 'cuda:99'])
def test_unknown_device_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match=device):
        Predictor(*write_toy(tmp_path), device=device)


def test_model_with_fixed_classes_is_refused(tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    loaded = load_config(config)
    loaded.model = {'type': 'Linear', 'in_features': 1, 'out_features': 1}
    with pytest.raises(ValueError, match='Linear takes no vocabulary'):
        Predictor(loaded, checkpoint)


def test_pipeline_must_begin_with_the_image(tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    config.write_text(CONFIG.replace("    dict(type='ovd.LoadImage'),\n", ''))
    with pytest.raises(ValueError, match='begins with Resize'):
        Predictor(config, checkpoint)


def test_preprocessor_beside_the_model_is_used_as_by_the_runner(tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    loaded = load_config(config)
    loaded.data_preprocessor = loaded.model.pop('data_preprocessor')
    loaded.data_preprocessor.std = [510, 510, 510]
    (prediction,) = (
        Predictor(loaded, checkpoint, 'cpu').set_vocabulary('red').predict(flat(255, 0, 0), raw=True)
    )
    assert prediction.scores.tolist() == [0.5]
    assert 'data_preprocessor' not in loaded.model
