"""Contrast between the regions and the words of a whole batch: every image's, on every process.

Source: Zhang et al., "GLIPv2", NeurIPS 2022 (inter-image region-word contrast), with the details of the code
that GLIP was released with. Differences from that code: regions of every box take part (there, those of an
image's first box are lost), and gradients reach the regions and words of all processes.
Reading order: contrasted_anchors (which regions), RegionWordContrast, region_word_loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.gather import JointRows, gather_rows, joint_rows, sum_over_processes, world_size


class Embedded(NamedTuple):
    """Regions or words of this process's images.

    Attributes:
        vectors: [N, D], unit length.
        images: [N] int64, which image of the batch each belongs to.
        class_ids: [N] int64, the class of each, equal on all processes; negative for none.
    """

    vectors: Tensor
    images: Tensor
    class_ids: Tensor


class RegionWordContrast(nn.Module):
    """Contrasts regions with the words of all images, and words with the regions of all images.

    The sum is divided by the number of anchors with a box, mean over processes, as in the token loss.

    Args:
        region_channels: C of the maps, before image and text are fused.
        word_channels: W of the token features, before they are fused.
        embed_dim: width D that both are projected to.
        max_positives: regions with a box that take part, per image; sampled if there are more.
        fill: pad each image with regions without a box, to the largest number of any image.
        weight: of the loss.
    """

    def __init__(
        self,
        region_channels: int,
        word_channels: int,
        embed_dim: int = 64,
        max_positives: int = 100,
        fill: bool = True,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.project_regions = nn.Linear(region_channels, embed_dim)
        self.project_words = nn.Linear(word_channels, embed_dim)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.max_positives = max_positives
        self.fill = fill
        self.weight = weight

    def forward(
        self,
        features: Tensor,
        words: Tensor,
        word_mask: Tensor,
        assigned_boxes: Tensor,
        tokens: Tensor,
        word_ids: Tensor,
    ) -> Tensor:
        """Loss of B images; the mean over processes is that of the joint batch.

        Args:
            features: [B, N, C], of all anchors.
            words: [B, L, W], features of the tokens.
            word_mask: [B, L], True = token that takes part.
            assigned_boxes: [B, N], index of the box assigned to each anchor, -1 = none.
            tokens: [B, G, L] bool, the tokens of each box.
            word_ids: [B, L] int64, the class of each token, negative for tokens of a caption.
        """
        images, chosen = contrasted_anchors(assigned_boxes, self.max_positives, self.fill)
        boxes = assigned_boxes[images, chosen]
        own_words = tokens[images, boxes.clamp(min=0)] & (boxes >= 0)[:, None]
        # A region shows the class that its own words name.
        named = word_ids[images].where(own_words, -1)
        region_ids = named.amax(1) if named.numel() else named.new_full((len(images),), -1)
        regions = Embedded(self._unit(self.project_regions, features[images, chosen]), images, region_ids)
        word_images, word_positions = word_mask.nonzero(as_tuple=True)
        vectors = self._unit(self.project_words, words[word_images, word_positions])
        texts = Embedded(vectors, word_images, word_ids[word_images, word_positions])
        own = own_words[:, word_positions] & (images[:, None] == word_images)
        average = sum_over_processes((assigned_boxes >= 0).sum().float()) / world_size()
        loss = region_word_loss(regions, texts, own, len(assigned_boxes), self.log_scale)
        return self.weight * loss / average.clamp(min=1)

    @staticmethod
    def _unit(project: nn.Module, features: Tensor) -> Tensor:
        projected: Tensor = project(features)
        return F.normalize(projected.float(), dim=-1)


def contrasted_anchors(assigned_boxes: Tensor, max_positives: int, fill: bool) -> tuple[Tensor, Tensor]:
    """Image indices [R] and anchor indices [R] of the regions that take part.

    Args:
        assigned_boxes: [B, N], see ``RegionWordContrast``, whose arguments the others are.
    """
    positives = [_some((row >= 0).nonzero().flatten(), max_positives) for row in assigned_boxes]
    chosen = positives
    if fill:
        counts = torch.tensor([len(part) for part in positives], device=assigned_boxes.device)
        longest = int(gather_rows(counts, joint_rows(len(counts), assigned_boxes.device)).max())
        others = [(row < 0).nonzero().flatten() for row in assigned_boxes]
        chosen = [torch.cat([p, _some(o, longest - len(p))]) for p, o in zip(positives, others)]
    sizes = torch.tensor([len(part) for part in chosen], device=assigned_boxes.device)
    return torch.arange(len(assigned_boxes), device=assigned_boxes.device).repeat_interleave(
        sizes
    ), torch.cat(chosen)


def region_word_loss(
    regions: Embedded, words: Embedded, own: Tensor, num_images: int, log_scale: Tensor
) -> Tensor:
    """Cross-entropy of own regions over all words and of own words over all regions: sum, halved; float32.

    A row's target is spread evenly over its positives; a row without any does not count. Between two images a
    region and a word are a positive pair if both are of the same class; words of captions have none.

    Args:
        regions, words: R and M of this process's images.
        own: [R, M] bool, pairs of one image that belong together.
        num_images: B, of this process.
        log_scale: log of what the cosines are divided by.
    """
    with torch.autocast(own.device.type, enabled=False):
        temperature = log_scale.float().exp()
        first = joint_rows(num_images, own.device).start
        region_rows, word_rows = (joint_rows(len(part.images), own.device) for part in (regions, words))
        all_regions, all_words = _joint(regions, region_rows, first), _joint(words, word_rows, first)
        rows = []
        for mine, others, joint, pairs in (
            (regions, all_words, word_rows, own),
            (words, all_regions, region_rows, own.T),
        ):
            targets = (mine.class_ids[:, None] == others.class_ids) & (mine.class_ids >= 0)[:, None]
            targets &= mine.images[:, None] + first != others.images
            targets[:, joint.start : joint.start + pairs.shape[1]] |= pairs
            counts = targets.sum(1)
            log_probs = (mine.vectors.float() @ others.vectors.float().T / temperature).log_softmax(1)
            rows.append(-(log_probs * targets).sum(1) / counts.clamp(min=1))
        return torch.cat(rows).sum() / 2


def _joint(part: Embedded, rows: JointRows, first_image: int) -> Embedded:
    """The parts of all processes; images are numbered consecutively."""
    images = gather_rows(part.images + first_image, rows)
    return Embedded(gather_rows(part.vectors, rows), images, gather_rows(part.class_ids, rows))


def _some(indices: Tensor, limit: int) -> Tensor:
    """At most ``limit`` of the indices, sampled if there are more."""
    if len(indices) <= limit:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:limit]]
