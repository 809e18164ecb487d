"""What every conversion of a published checkpoint returns."""

from typing import NamedTuple

from torch import Tensor


class Converted(NamedTuple):
    """Result of a conversion.

    Attributes:
        tensors: our key -> tensor.
        stripped: keys left out on purpose: the CLIP copy inside the checkpoint, which is not the detector's,
            and weights that the published code never uses.
        unmatched: keys without a counterpart here; nothing was done with them.
        notes: lines that tell the user what the file holds and why keys were left out.
    """

    tensors: dict[str, Tensor]
    stripped: list[str]
    unmatched: list[str]
    notes: tuple[str, ...] = ()
