"""Readouts: class scores of pixels from the groups of an image.

Source: Xu et al., GroupViT, CVPR 2022, Sec. 3.3, and its released evaluation.
Reading order: GroupPredictions (input), GroupReadout (base class), ReferenceReadout (the released
evaluation), SoftReadout (ours), compose_maps, GroupScores (output).
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...encoders.text_embeddings import TextEmbeddings
from ...layers.score_maps import CutScores, ScoreMaps, TensorScores, argmax_labels, resized
from ...options import check_option
from ...registry import MODELS
from .background import Embed, GroupBackground
from .grouping import GroupingOutput

logger = logging.getLogger(__name__)


class GroupPredictions(NamedTuple):
    """Groups of B images in the joint space.

    Attributes:
        output: of the image encoder.
        group_embeddings: [B, G, D], unit length.
        image_embeddings: [B, D], unit length.
        scale: 0-dim, the logit scale.
        background: [D], unit length, the learned background embedding, if any.
        token_embeddings: [B, L, D], unit length, of the cells of ``output.grid``, row by row, if any.
    """

    output: GroupingOutput
    group_embeddings: Tensor
    image_embeddings: Tensor
    scale: Tensor
    background: Tensor | None = None
    token_embeddings: Tensor | None = None


class GroupReadout(nn.Module):
    """Classify groups and score each pixel by its groups; has no parameters.

    Attributes:
        with_background: whether channel K, the last, is background.
        presence_side: shorter side in pixels of the whole image for ``image_prior``; None: no prior of the
            whole image.
        assignment: assignments between pixels and groups, see ``compose_maps``.
        has_rivals: whether background embeddings compete with the classes.
    """

    with_background = False
    presence_side: int | None = None
    assignment = 'soft'
    has_rivals = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('text_embeddings', None, persistent=False)
        self.text_embeddings: Tensor | None

    def use_text_embeddings(
        self, text: TextEmbeddings, embed: Embed | None = None, device: torch.device | str = 'cpu'
    ) -> None:
        """Set the classes.

        Args:
            text: K classes.
            embed: encodes further words that a readout may need.
            device: of the scores.
        """
        self.text_embeddings = text.embeddings.to(device)
        if len(text) == 1 and not self.has_rivals:
            logger.warning(
                "a single class without background: every group is %r; add classes or set the readout's "
                "background=dict(names='stuff')",
                text.vocabulary.names[0],
            )

    def forward(
        self,
        predictions: GroupPredictions,
        size: tuple[int, int],
        prior: Tensor | None = None,
        background: bool = True,
    ) -> ScoreMaps:
        """Compute scores of every pixel.

        Args:
            predictions: of B images or windows.
            size: (height, width) of those images in pixels.
            prior: [B, K], ``image_prior`` of the whole images; by default that of ``predictions``.
            background: False: no group is background, and channel K, if any, is zero.
        Returns:
            maps of K classes (K + 1 with background) on a grid of ``size``.
        """
        table = self.group_table(predictions, prior, background)
        return GroupScores(compose_maps(predictions.output), table, size, self._is_one_hot)

    def group_table(
        self, predictions: GroupPredictions, prior: Tensor | None = None, background: bool = True
    ) -> Tensor:
        """Class scores of each group, [B, G, K] or, with background, [B, G, K + 1]; float32.

        Arguments as in ``forward``.
        """
        raise NotImplementedError

    def image_prior(self, predictions: GroupPredictions) -> Tensor:
        """Class probabilities of the whole images, [B, K]."""
        return (predictions.scale * _cosine(predictions.image_embeddings, self._words())).softmax(dim=-1)

    _is_one_hot = False

    def _words(self) -> Tensor:
        if self.text_embeddings is None:
            raise ValueError('no vocabulary: call use_text_embeddings first')
        return self.text_embeddings


@MODELS.register_module()
class ReferenceReadout(GroupReadout):
    """Reproduces the released evaluation, including its defects.

    Every pixel belongs to one group. The score of a group is the product of two softmaxes, one of them over
    the most probable classes of the image. With background, groups whose best score is below the threshold
    score 1 for background. The threshold is at most the best score of the image (or window), so each keeps a
    foreground group.

    Args:
        background: the threshold; None: no background.
        class_topk: number of candidate classes per image.
    """

    _is_one_hot = True

    def __init__(self, background: float | None = None, class_topk: int = 5) -> None:
        super().__init__()
        self.threshold, self.class_topk = background, class_topk
        self.with_background = background is not None

    def group_table(
        self, predictions: GroupPredictions, prior: Tensor | None = None, background: bool = True
    ) -> Tensor:
        prior = self.image_prior(predictions) if prior is None else prior
        logits = predictions.scale * _cosine(predictions.group_embeddings, self._words())
        absent = _below_top(prior, self.class_topk)[:, None]
        scores = logits.masked_fill(absent, -torch.inf).softmax(dim=-1) * logits.softmax(dim=-1)
        if self.threshold is None:
            return scores
        threshold = scores.amax(dim=(1, 2)).clamp(max=self.threshold)
        lost = (scores.amax(dim=-1) < threshold[:, None]) & background
        return torch.cat([scores, lost[..., None].to(scores)], dim=-1)


@MODELS.register_module()
class SoftReadout(GroupReadout):
    """Soft assignment: the score of a pixel is the sum over groups of its share times the group's score.

    Shares are interpolated, so scales, flips and windows average to finer outlines.

    Args:
        affinity: 'double_softmax': product of the softmax over candidate classes and that over all classes;
            'softmax': the first of the two.
        class_topk: number of candidate classes per image, the most probable ones; None: all.
        presence: compute these probabilities once on the whole 'image', or on each 'window'.
        presence_side: shorter side of the whole image for that; best the training size.
        unit_votes: scale the scores of each group to a maximum of 1, so that the outline between two groups
            depends on their shares only.
        one_hot: assign each pixel to its best group before scoring.
        assignment: shares come from 'soft' or 'hard' assignments.
        level: classify 'groups', or 'tokens', each cell of the encoder's grid, if the model has token
            embeddings.
        background: arguments of ``GroupBackground``; None: no background.
    """

    def __init__(
        self,
        affinity: str = 'double_softmax',
        class_topk: int | None = 5,
        presence: str = 'image',
        presence_side: int = 224,
        unit_votes: bool = False,
        one_hot: bool = False,
        assignment: str = 'soft',
        level: str = 'groups',
        background: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_option('affinity', affinity, ('softmax', 'double_softmax'))
        check_option('presence', presence, ('image', 'window'))
        check_option('assignment', assignment, ('soft', 'hard'))
        check_option('level', level, ('groups', 'tokens'))
        if class_topk is not None:
            self.presence_side = presence_side if presence == 'image' else None
        self.affinity, self.class_topk = affinity, class_topk
        self.unit_votes, self._is_one_hot = unit_votes, one_hot
        self.assignment, self.level = assignment, level
        self.background = None if background is None else GroupBackground(**background)
        self.with_background = background is not None

    def use_text_embeddings(
        self, text: TextEmbeddings, embed: Embed | None = None, device: torch.device | str = 'cpu'
    ) -> None:
        if self.background is not None:
            self.background.use_text_embeddings(text, embed, torch.device(device))
            self.has_rivals = self.background.learned or self.background.embeddings is not None
        super().use_text_embeddings(text, embed, device)

    def forward(
        self,
        predictions: GroupPredictions,
        size: tuple[int, int],
        prior: Tensor | None = None,
        background: bool = True,
    ) -> ScoreMaps:
        output = predictions.output
        table = self.group_table(predictions, prior, background)
        if self.level == 'tokens':
            maps = TensorScores(table.transpose(1, 2).unflatten(2, output.grid))
            return resized(maps, size, align_corners=False)
        return GroupScores(compose_maps(output, assignment=self.assignment), table, size, self._is_one_hot)

    def assigned_rows(
        self, predictions: GroupPredictions, input_size: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:
        """Row of ``group_table`` with the largest share in each pixel, int64 [B, H, W] of ``image_size``."""
        if self.level == 'groups':
            return group_labels(predictions.output, input_size, image_size, assignment=self.assignment)
        rows, columns = predictions.output.grid
        device = predictions.group_embeddings.device
        y = torch.arange(input_size[0], device=device)[: image_size[0]] * rows // input_size[0]
        x = torch.arange(input_size[1], device=device)[: image_size[1]] * columns // input_size[1]
        return (y[:, None] * columns + x).expand(len(predictions.group_embeddings), *image_size)

    def group_table(
        self, predictions: GroupPredictions, prior: Tensor | None = None, background: bool = True
    ) -> Tensor:
        scores, others = self.group_scores(predictions, prior)
        if self.background is not None:
            rest = scores.new_zeros((*scores.shape[:2], 1))
            if background:
                if others.shape[-1]:
                    rest = others.amax(dim=-1, keepdim=True)
                lost = self.background.is_background(scores, others)[..., None]
                scores, rest = scores.masked_fill(lost, 0), rest.masked_fill(lost, 1)
            scores = torch.cat([scores, rest], dim=-1)
        if self.unit_votes:
            scores = scores / scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        return scores

    def group_scores(
        self, predictions: GroupPredictions, prior: Tensor | None = None, every_class: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scores before thresholds, of the classes [B, G, K] and of background embeddings [B, G, S].

        Args:
            predictions, prior: see ``forward``.
            every_class: ignore ``class_topk``.
        """
        words = self._words()
        classes = len(words)
        if self.background is not None:
            words = torch.cat([words, *self.background.rivals(predictions.background)])
        embeddings = predictions.group_embeddings
        if self.level == 'tokens':
            if predictions.token_embeddings is None:
                raise ValueError("level='tokens' requires an image encoder with tokens")
            embeddings = predictions.token_embeddings
        logits = predictions.scale * _cosine(embeddings, words)
        possible = logits
        if self.class_topk is not None and not every_class:
            prior = self.image_prior(predictions) if prior is None else prior
            absent = torch.zeros_like(logits[:, :1], dtype=torch.bool)
            absent[..., :classes] = _below_top(prior, self.class_topk)[:, None]
            possible = logits.masked_fill(absent, -torch.inf)
        scores = possible.softmax(dim=-1)
        if self.affinity == 'double_softmax':
            scores = scores * logits.softmax(dim=-1)
        return scores[..., :classes], scores[..., classes:]


def compose_maps(output: GroupingOutput, stages: int | None = None, assignment: str = 'soft') -> Tensor:
    """Assignment of each patch to the groups of a stage: product of the assignments up to it.

    Args:
        output: of B images.
        stages: number of groupings, from the first; by default all, for the final groups.
        assignment: 'soft' or 'hard', see ``GroupingOutput``.
    Returns:
        [B, G, h, w], sums to one over G.
    """
    assignments = output.soft if assignment == 'soft' else output.hard
    shares = assignments[0]
    for further in assignments[1:stages]:
        shares = further @ shares
    return shares.unflatten(-1, output.grid)


def group_labels(
    output: GroupingOutput,
    input_size: tuple[int, int],
    image_size: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    stages: int | None = None,
    assignment: str = 'soft',
) -> Tensor:
    """Group with the largest share in each pixel, for drawing and for mask metrics.

    Args:
        output: of B images.
        input_size: (height, width) of the encoder's input.
        image_size: the same without padding on the right and below, by default ``input_size``.
        size: of the result, for example the original image; by default ``image_size``.
        stages, assignment: see ``compose_maps``.
    Returns:
        int64 [B, H, W].
    """
    image_size = image_size or input_size
    shares = TensorScores(compose_maps(output, stages, assignment))
    maps = resized(shares, input_size, align_corners=False)
    if tuple(image_size) != tuple(input_size):
        maps = CutScores(maps, image_size)
    return argmax_labels(resized(maps, size or image_size, align_corners=False))


class GroupScores(ScoreMaps):
    """Scores of pixels from shares and scores of groups, computed on demand.

    Args:
        maps: [B, G, h, w], shares of pixels in groups, on the encoder's grid.
        table: [B, G, C], scores of the groups.
        size: (height, width) of the result; shares are interpolated to it.
        one_hot: assign each pixel to the group with its largest share.
    """

    def __init__(self, maps: Tensor, table: Tensor, size: tuple[int, int], one_hot: bool = False) -> None:
        self.shares = resized(TensorScores(maps), size, align_corners=False)
        self.table, self.one_hot = table, one_hot
        self.batch, self.channels = table.shape[0], table.shape[2]
        self.height, self.width = self.shares.size
        self.device, self.dtype = table.device, table.dtype

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        shares = self.shares.rows(start, stop)
        table = self.table[:, :, channels].transpose(1, 2)  # [B, C', G]
        if not self.one_hot:
            return torch.matmul(table, shares.to(table).flatten(2)).unflatten(2, shares.shape[2:])
        group = shares.argmax(dim=1).flatten(1)[:, None].expand(-1, table.shape[1], -1)
        return table.gather(2, group).unflatten(2, shares.shape[2:])

    def images(self, start: int, stop: int) -> ScoreMaps:
        part = object.__new__(GroupScores)
        part._like(self)
        part.shares, part.table = self.shares.images(start, stop), self.table[start:stop]
        part.one_hot, part.batch = self.one_hot, stop - start
        return part


def _cosine(embeddings: Tensor, words: Tensor) -> Tensor:
    """Unit vectors [..., D] and [K, D] -> [..., K], in float32."""
    with torch.autocast(embeddings.device.type, enabled=False):
        return embeddings.float() @ words.T


def _below_top(prior: Tensor, count: int) -> Tensor:
    """True for classes not among the ``count`` most probable, bool [B, K]."""
    top = prior.topk(min(count, prior.shape[-1]), dim=-1).indices
    return torch.ones_like(prior, dtype=torch.bool).scatter_(-1, top, False)
