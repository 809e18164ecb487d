"""GroupBatch: inputs of GroupViT's auxiliary losses and of image pooling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmseg.structures import SegDataSample
from torch import Tensor

from ...layers.cosine_classifier import l2_normalize
from .grouping import GroupingOutput


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """Outputs of a grouping model for B images, in training also for their texts.

    Attributes:
        output: of the image encoder.
        image_embeddings: [B, D], unit length.
        project: features [..., C] of groups, images or tokens to the joint space [..., D], not normalised.
        scale: 0-dim, the logit scale.
        background: [D], unit length, the learned background embedding, if any.
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
        """Tokens in the joint space [B, L, D], unit length; None without tokens."""
        return None if self.output.tokens is None else l2_normalize(self.project(self.output.tokens))
