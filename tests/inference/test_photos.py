"""Photographs and words: the table, the sheet, folders; the model is a stand-in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovd.inference.photos import folder_photos, name_photos, shipped_photos
from ovd.inference.predictions import Prediction
from ovd.text.vocabulary import Vocabulary
from tests.helpers import write_image


class ToyPredictor:
    """Finds the first word on the whole picture and the second on its upper left quarter."""

    def set_vocabulary(self, words: Any) -> None:
        self.vocabulary = Vocabulary.parse(words)

    def predict(self, picture: np.ndarray) -> list[Prediction]:
        height, width = picture.shape[:2]
        boxes = [[0, 0, width, height], [0, 0, width / 2, height / 2], [0, 0, width, height]]
        return [
            Prediction(
                boxes=np.array(boxes, np.float32),
                scores=np.array([0.7, 0.6, 0.1], np.float32),
                labels=np.array([0, 1, 2]),
                names=tuple(self.vocabulary.names[:3]),
                masks=None,
                size=(height, width),
            )
        ]


def test_a_folder_becomes_a_table_and_a_sheet(tmp_path: Path) -> None:
    for index, size in enumerate([(40, 60), (90, 50)]):
        write_image(tmp_path / 'in' / f'{index}.png', *size, seed=index)
    (tmp_path / 'in' / 'notes.txt').write_text('no picture')
    predictor: Any = ToyPredictor()
    answers, sheet = name_photos(tmp_path / 'in', 'cat, dog, cup', tmp_path / 'out', predictor)
    assert [answer.name for answer in answers] == ['0.png', '1.png']
    assert answers[0].words == ('cat', 'cup', 'dog')
    assert answers[0].probs == pytest.approx((0.7, 0.1, 0.0))
    assert answers[0].prediction.names == ('dog',)  # the others are the whole picture
    lines = (tmp_path / 'out' / 'photos.tsv').read_text().splitlines()
    assert lines[1].split('\t') == ['0.png', 'cat 0.70, cup 0.10, dog 0.00', 'dog 0.60']
    with Image.open(sheet) as image:
        assert image.size == (4 * 320, 320 + 80)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        folder_photos(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='no picture'):
        folder_photos(tmp_path)


def test_pictures_that_scikit_image_ships() -> None:
    pytest.importorskip('skimage')
    photos = dict(shipped_photos())
    assert {'astronaut', 'chelsea', 'coffee', 'rocket'} <= set(photos)
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in photos.values())
