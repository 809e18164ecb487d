"""Padding to a multiple, groups of equal shape."""

import torch

from ovd.layers.geometry import by_shape, pad_to_multiple


def test_padding_goes_right_and_below() -> None:
    image = torch.ones(1, 2, 3)
    padded = pad_to_multiple(image, 4, value=-1)
    assert padded.shape == (1, 4, 4)
    assert padded[:, :2, :3].equal(image)
    assert padded.sum() == 6 - 10


def test_a_multiple_is_returned_as_it_is() -> None:
    image = torch.ones(2, 3, 8, 4)
    assert pad_to_multiple(image, 4) is image


def test_groups_keep_the_order_of_their_first_members() -> None:
    tensors = [torch.zeros(shape) for shape in ((3, 2), (3, 4), (3, 2), (1, 3, 4), (3, 4))]
    assert by_shape(tensors) == [[0, 2], [1, 4], [3]]
    assert by_shape([]) == []
