"""Sizes of images in a batch: padding to a multiple, groups of equal shape."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(images: Tensor, divisor: int, value: float = 0.0) -> Tensor:
    """Pad on the right and at the bottom until height and width are multiples of ``divisor``.

    Args:
        images: [..., H, W]; returned as they are if nothing is missing.
        divisor: pixels.
        value: of the padding.
    """
    height, width = images.shape[-2:]
    right, below = -width % divisor, -height % divisor
    return F.pad(images, (0, right, 0, below), value=value) if right or below else images


def by_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Indices of tensors of equal shape, groups in the order of their first member."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tuple(tensor.shape), []).append(index)
    return list(groups.values())
