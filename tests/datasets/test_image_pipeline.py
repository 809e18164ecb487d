"""Test pipelines without annotations, and batches of equal image size."""

from typing import Any

import pytest
import torch

from ovd.datasets.image_pipeline import equal_shapes, image_steps


def test_steps_that_load_annotations_are_removed() -> None:
    names = [
        'ovd.LoadImage',
        'Resize',
        'LoadAnnotations',
        'ovd.LoadSegmentation',
        'ovd.LoadRegionEmbeddings',
        'Pack',
    ]
    kept = image_steps([{'type': name} for name in names])
    assert [step['type'] for step in kept] == ['ovd.LoadImage', 'Resize', 'Pack']


@pytest.mark.parametrize('steps', [[], [{'type': 'Resize'}, {'type': 'LoadImageFromFile'}]])
def test_a_pipeline_must_begin_with_the_image(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r'nothing|Resize'):
        image_steps(steps)


def test_samples_are_grouped_by_the_shape_of_their_image() -> None:
    samples = [{'inputs': torch.zeros(3, *size)} for size in ((2, 4), (4, 2), (2, 4), (2, 2))]
    assert equal_shapes(samples) == [[0, 2], [1], [3]]
