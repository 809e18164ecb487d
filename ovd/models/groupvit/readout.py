"""From groups of an image to scores of its pixels, for any words.

Source: Xu et al., GroupViT, CVPR 2022, Sec. 3.3 and what its released evaluation does beyond the paper.
Reading order: GroupPredictions (what a grouping model found), GroupReadout (what both readouts share),
ReferenceReadout (the released evaluation), SoftReadout (ours), compose_maps, GroupScores (the result).
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...encoders.text_embeddings import TextEmbeddings
from ...layers.score_maps import CutScores, ScoreMaps, TensorScores, argmax_labels, resized
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
        scale: 0-dim, the multiplier of cosines.
        background: [D], unit length, what the model learned to be like no word; None if it did not.
        token_embeddings: [B, L, D], unit length, of the places on ``output.grid``, row by row; None if the
            model gives none.
    """

    output: GroupingOutput
    group_embeddings: Tensor
    image_embeddings: Tensor
    scale: Tensor
    background: Tensor | None = None
    token_embeddings: Tensor | None = None


class GroupReadout(nn.Module):
    """Name the groups, then let every pixel take the score of its group; has no parameters.

    Attributes:
        with_background: whether channel K, the last, is background.
        presence_side: shorter side in pixels at which a whole image should be shown to the encoder for
            ``image_prior``; None when the readout asks for no prior of the whole image.
        assignment: which assignments tell the pixels of a group, see ``compose_maps``.
        has_rivals: whether anything competes with the classes for a group.
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
        """Answer with these classes from now on.

        Args:
            text: K classes.
            embed: encodes further words that a readout may need.
            device: where the scores are computed.
        """
        self.text_embeddings = text.embeddings.to(device)
        if len(text) == 1 and not self.has_rivals:
            logger.warning(
                'a single word has nothing to compete with, so every group is %r: add words for other '
                "things, or take a readout with background=dict(names='stuff')",
                text.vocabulary.names[0],
            )

    def forward(
        self,
        predictions: GroupPredictions,
        size: tuple[int, int],
        prior: Tensor | None = None,
        background: bool = True,
    ) -> ScoreMaps:
        """Scores of every pixel.

        Args:
            predictions: of B images, or of B windows of images.
            size: (height, width) of those images in pixels.
            prior: [B, K], ``image_prior`` of the whole images where ``predictions`` are of windows; by
                default that of the predictions themselves.
            background: False: no group is background and channel K, where there is one, is zero.
        Returns:
            maps of K classes (K + 1 with background) on a grid of ``size``.
        """
        table = self.group_table(predictions, prior, background)
        return GroupScores(compose_maps(predictions.output), table, size, self._is_one_hot)

    def group_table(
        self, predictions: GroupPredictions, prior: Tensor | None = None, background: bool = True
    ) -> Tensor:
        """What a pixel of each group scores, [B, G, K] or, with background, [B, G, K + 1]; float32.

        Arguments as those of ``forward``.
        """
        raise NotImplementedError

    def image_prior(self, predictions: GroupPredictions) -> Tensor:
        """How probable each class is on the image as a whole, [B, K]; rows sum to one."""
        return (predictions.scale * _cosine(predictions.image_embeddings, self._words())).softmax(dim=-1)

    _is_one_hot = False

    def _words(self) -> Tensor:
        if self.text_embeddings is None:
            raise ValueError('the readout has no words: call use_text_embeddings first')
        return self.text_embeddings


@MODELS.register_module()
class ReferenceReadout(GroupReadout):
    """The released evaluation, step by step, with its defects.

    Every pixel belongs to one group. A group scores the product of two softmaxes, one of them over the
    classes that are most probable on the image. With background, a pixel of a group whose best score lies
    below the threshold scores 1 for background; the threshold never exceeds the best score of the image, so
    each image (each window, when the model slides one) keeps a foreground group.

    Args:
        background: the threshold; None: no background.
        class_topk: classes of an image that may be named.
    """

    _is_one_hot = True

    def __init__(self, background: float | None = None, class_topk: int = 5) -> None:
        super().__init__()
        _check_topk(class_topk)
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
    """Pixels keep their share in every group: a pixel scores the sum over groups of share x group's score.

    The shares are interpolated, not decided, so scales, flips and windows average into finer outlines. Every
    default can be changed by itself.

    Args:
        affinity: 'double_softmax': product of the softmax over the classes that may be named and that over
            all classes; 'softmax': the first of the two.
        class_topk: how many classes of an image may be named, the most probable on it; None: all.
        presence: where that is judged: 'image', once on the whole image, or 'window', on each window anew.
        presence_side: shorter side at which the whole image is judged; training size is what the encoder is
            used to.
        unit_votes: scale the scores of each group so that its best class, or background, has 1. Outlines
            between groups then lie where their shares are equal, whatever the confidence of their names.
        one_hot: give each pixel to its best group before scoring.
        assignment: shares come from 'soft' assignments, or from the 'hard' ones that features come from.
        level: what is named: 'groups', or 'tokens', each place of the encoder's grid by itself, where the
            model gives embeddings of them.
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
        for name, value, known in (
            ('affinity', affinity, ('softmax', 'double_softmax')),
            ('presence', presence, ('image', 'window')),
            ('assignment', assignment, ('soft', 'hard')),
            ('level', level, ('groups', 'tokens')),
        ):
            if value not in known:
                raise ValueError(f'{name} {value!r} is none of {", ".join(map(repr, known))}')
        if class_topk is not None:
            _check_topk(class_topk)
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

    def owners(
        self, predictions: GroupPredictions, input_size: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:
        """Which row of ``group_table`` each pixel follows most, int64 [B, H, W] of ``image_size``."""
        if self.level == 'groups':
            return group_labels(predictions.output, input_size, image_size, assignment=self.assignment)
        rows, columns = predictions.output.grid
        device = predictions.group_embeddings.device
        y = torch.arange(input_size[0], device=device)[: image_size[0]] * rows // input_size[0]
        x = torch.arange(input_size[1], device=device)[: image_size[1]] * columns // input_size[1]
        owners = y[:, None] * columns + x
        return owners.expand(len(predictions.group_embeddings), *image_size)

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
        """What thresholds apply to: scores of the classes [B, G, K] and of what is background [B, G, S].

        Args:
            predictions, prior: see ``forward``.
            every_class: let every class be named, whatever ``class_topk`` says.
        """
        words = self._words()
        classes = len(words)
        if self.background is not None:
            words = torch.cat([words, *self.background.rivals(predictions.background)])
        embeddings = predictions.group_embeddings
        if self.level == 'tokens':
            if predictions.token_embeddings is None:
                raise ValueError("level='tokens' needs a model that gives embeddings of its tokens")
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
    """How each patch spreads over the groups of a stage: product of the assignments up to it.

    Args:
        output: of B images.
        stages: how many groupings, from the first; by default all, which gives the final groups.
        assignment: 'soft', or 'hard' for the ones that the features were computed with.
    Returns:
        [B, G, h, w], sums to one over G.
    """
    assignments = output.soft if assignment == 'soft' else output.hard
    stages = len(assignments) if stages is None else stages
    if not 1 <= stages <= len(assignments):
        raise ValueError(f'stages must lie between 1 and {len(assignments)}, got {stages}')
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
    """The group with the largest share in each pixel, for drawing and for measuring groups without names.

    Args:
        output: of B images.
        input_size: (height, width) of what the encoder saw.
        image_size: that without padding at the right and the bottom, by default ``input_size``.
        size: of the result, for example of the original image; by default ``image_size``.
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
    """Scores of pixels that share in groups; rows are computed when they are asked for.

    Args:
        maps: [B, G, h, w], the pixels' shares in the groups, on the encoder's grid.
        table: [B, G, C], the scores of the groups.
        size: (height, width) of the result; the maps are interpolated to it.
        one_hot: give each pixel to the group with its largest share.
    """

    def __init__(self, maps: Tensor, table: Tensor, size: tuple[int, int], one_hot: bool = False) -> None:
        if maps.shape[:2] != table.shape[:2]:
            raise ValueError(f'group maps {list(maps.shape)} do not go with scores {list(table.shape)}')
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
        owner = shares.argmax(dim=1).flatten(1)[:, None].expand(-1, table.shape[1], -1)
        return table.gather(2, owner).unflatten(2, shares.shape[2:])

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
    """Which classes are not among the ``count`` most probable, bool [B, K]."""
    top = prior.topk(min(count, prior.shape[-1]), dim=-1).indices
    return torch.ones_like(prior, dtype=torch.bool).scatter_(-1, top, False)


def _check_topk(class_topk: int) -> None:
    if class_topk < 1:
        raise ValueError(f'class_topk must be at least 1, got {class_topk}')
