"""Test pipelines for images without annotations, and batches of equal image size."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..layers.geometry import by_shape

_ANNOTATION_LOADERS = ('LoadAnnotations', 'LoadRegionEmbeddings', 'LoadSegmentation')


def image_steps(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Steps of a test pipeline without those that load annotations.

    Raises:
        ValueError: the first step does not load the image.
    """
    kept = [step for step in steps if step['type'].rpartition('.')[2] not in _ANNOTATION_LOADERS]
    if not kept or not kept[0]['type'].rpartition('.')[2].startswith('LoadImage'):
        first = kept[0]['type'] if kept else 'nothing'
        raise ValueError(f'the test pipeline must begin with loading the image, it begins with {first}')
    return kept


def equal_shapes(samples: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of samples, grouped by the shape of their image tensor ``inputs``."""
    return by_shape([sample['inputs'] for sample in samples])
