"""Result type of the conversions of published checkpoints."""

from typing import NamedTuple

from torch import Tensor


class Converted(NamedTuple):
    """Result of a conversion.

    Attributes:
        tensors: our key -> tensor.
        stripped: keys omitted on purpose: the copy of CLIP in the checkpoint, and weights that the published
            code never uses.
        unmatched: keys without a counterpart; ignored.
        notes: lines for the user that describe the checkpoint and the omitted keys.
    """

    tensors: dict[str, Tensor]
    stripped: list[str]
    unmatched: list[str]
    notes: tuple[str, ...] = ()
