"""Settings of a model folder that would fetch weights are refused, however they are spelled."""

from typing import Any

import pytest

from ovd.inference.model_folders.trusted_config import UnsafeModelFolderError, check


@pytest.mark.parametrize('value', [True, 1, 0.5, ['x'], {'x': 'y'}, 'laion2b', 'hf-hub:a/b'])
def test_pretrained_weights_are_not_fetched(value: Any) -> None:
    with pytest.raises(UnsafeModelFolderError, match='pretrained'):
        check({'text': {'pretrained': value}}, lambda name: True)


@pytest.mark.parametrize('value', [None, False, 0, 'random:3'])
def test_no_weights_or_random_ones_pass(value: Any) -> None:
    check({'text': {'pretrained': value}}, lambda name: True)
