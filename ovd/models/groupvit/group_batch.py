"""What is asked of groups beyond agreeing with captions: the seam for further losses and for pooling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmseg.structures import SegDataSample
from torch import Tensor

from ...layers.cosine_classifier import l2_normalize
from .grouping import GroupingOutput


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """What a grouping model knows of B images, and in training of their texts.

    Attributes:
        output: of the image encoder.
        image_embeddings: [B, D], unit length.
        project: features [..., C] of groups, images or tokens to the joint space [..., D], not normalised.
        scale: 0-dim, the multiplier of cosines.
        background: [D], unit length, the learned vector of what no word describes; None without one.
        text_embeddings: [B, 1 + N, D], unit length: the captions and their prompts; None in evaluation.
        samples: B training samples; empty in evaluation.
    """

    output: GroupingOutput
    image_embeddings: Tensor
    project: Callable[[Tensor], Tensor]
    scale: Tensor
    background: Tensor | None = None
    text_embeddings: Tensor | None = None
    samples: Sequence[SegDataSample] = ()

    @cached_property
    def group_embeddings(self) -> Tensor:
        """Groups in the joint space [B, G, D], unit length."""
        return l2_normalize(self.project(self.output.features))

    @cached_property
    def token_embeddings(self) -> Tensor | None:
        """Tokens in the joint space [B, L, D], unit length; None when the encoder gives none."""
        return None if self.output.tokens is None else l2_normalize(self.project(self.output.tokens))
