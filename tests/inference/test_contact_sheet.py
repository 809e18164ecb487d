"""The sheet of marked answers: right, wrong and missed ones are counted and drawn."""

import numpy as np

from ovd.inference.contact_sheet import MISSED, RIGHT, WRONG, contact_sheet, mark_answers
from ovd.inference.predictions import Prediction


def test_answers_are_marked_and_counted() -> None:
    found = Prediction(
        boxes=np.array([[10, 10, 60, 60], [100, 100, 150, 150]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        labels=np.array([0, 1]),
        names=('star', 'ring'),
        masks=None,
        size=(200, 200),
    )
    objects = [('star', np.array([12.0, 10, 60, 60])), ('key', np.array([100.0, 20, 150, 60]))]
    drawn, counts = mark_answers(np.full((200, 200, 3), 255, np.uint8), found, objects)
    assert counts == (1, 1, 1)
    colors = {tuple(color) for color in np.unique(drawn.reshape(-1, 3), axis=0).tolist()}
    assert {RIGHT, WRONG, MISSED} <= colors
    sheet = contact_sheet([drawn] * 5, [['a']] * 5, columns=4, side=100)
    assert sheet.size == (400, 2 * (100 + 18 + 8))


def test_pictures_without_objects_or_answers() -> None:
    none = np.zeros((0, 4), np.float32)
    found = Prediction(none, np.zeros(0, np.float32), np.zeros(0, np.int64), (), None, (64, 64))
    _, counts = mark_answers(np.zeros((64, 64, 3), np.uint8), found, [])
    assert counts == (0, 0, 0)
