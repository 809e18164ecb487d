"""Masks of annotation files: what is wrong with them, and their areas, against pycocotools."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from ovd.datasets.masks import area_of, mask_problem

HEIGHT, WIDTH = 20, 30
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 8.0, 2.0, 8.0]]  # 10 x 5


def encoded(seed: int, share: float) -> dict[str, Any]:
    mask = np.asfortranarray(np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share, dtype=np.uint8)
    result = mask_utils.encode(mask)
    return {'size': [HEIGHT, WIDTH], 'counts': result['counts'].decode()}


@pytest.mark.parametrize(('seed', 'share'), [(0, 0.0), (1, 0.01), (2, 0.5), (3, 0.99), (4, 1.0)])
def test_encodings_of_pycocotools_are_valid(seed: int, share: float) -> None:
    mask = encoded(seed, share)
    assert mask_problem(mask, HEIGHT, WIDTH) is None
    assert area_of({'segmentation': mask}, HEIGHT, WIDTH) == mask_utils.area(mask)
    assert mask_problem({**mask, 'counts': mask['counts'] + '1'}, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ('mask', 'part'),
    [
        (None, 'missing'),
        ([], 'missing'),
        ('text', 'str'),
        (7, 'int'),
        ([7], 'int'),
        ([[1, 2, 3, 4]], '4'),
        ([[1, 2, 3, 4, 5, 6, 7]], '7'),
        ([[1, 2, 3, 4, 5, float('nan')]], 'nan'),
        ([[1, 2, 3, 4, 5, 1e30]], '1e'),
        ([[1, 2, 3, 4, 5, 'x']], "'x'"),
        ([[1, 2, 3, 4, 5, None]], 'None'),
        ({'size': [64, 64], 'counts': [4096]}, '64'),
        ({'size': [HEIGHT, WIDTH], 'counts': [-5, 605]}, 'counts'),
        ({'size': [HEIGHT, WIDTH], 'counts': [599]}, '599'),
        ({'size': [HEIGHT, WIDTH], 'counts': 'oooooooooooo'}, 'counts'),
        ({'size': [HEIGHT, WIDTH], 'counts': None}, 'counts'),
        ({'size': [HEIGHT, WIDTH]}, 'counts'),
    ],
)
def test_problems_name_the_value(mask: Any, part: str) -> None:
    assert part in str(mask_problem(mask, HEIGHT, WIDTH))


def test_area_is_that_of_the_annotation_or_mask_or_box() -> None:
    annotation = {'bbox': [2, 3, 10, 6], 'segmentation': SQUARE}
    assert area_of({**annotation, 'area': 7}, HEIGHT, WIDTH) == 7
    assert area_of(annotation, HEIGHT, WIDTH) == area_of({**annotation, 'area': None}, HEIGHT, WIDTH) == 50
    assert area_of({**annotation, 'segmentation': None}, HEIGHT, WIDTH) == 60
    run_lengths = {'size': [HEIGHT, WIDTH], 'counts': [100, 30, 470]}
    assert area_of({**annotation, 'segmentation': run_lengths}, HEIGHT, WIDTH) == 30
