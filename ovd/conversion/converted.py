"""What every conversion of a published checkpoint returns."""

from typing import NamedTuple

from torch import Tensor


class Converted(NamedTuple):
    """Result of a conversion.

    Attributes:
        tensors: our key -> tensor.
        stripped: keys left out on purpose: the CLIP copy inside the checkpoint, which is not the detector's.
        unmatched: keys without a counterpart here; nothing was done with them.
    """

    tensors: dict[str, Tensor]
    stripped: list[str]
    unmatched: list[str]
