"""Draw the groups of a grouping model on the image."""

import colorsys
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..layers.geometry import pad_to_multiple
from ..models.base import OpenVocabularyModel
from ..models.groupvit.grouping import GroupingOutput
from ..models.groupvit.readout import compose_maps, group_labels
from ..models.groupvit.segmentor import GroupViT
from .draw import PALETTE, RGB, draw_segmentation


@dataclass(frozen=True)
class Groups:
    """The groups of one stage on one image.

    Attributes:
        labels: int64 [H, W], group of every pixel of the original image.
        names: of all G groups: number, from 1, and class of the final group that it is or joins.
        stage: from 1, the first grouping.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    stage: int

    def draw(self, image: np.ndarray, font: str | os.PathLike[str] | None = None) -> np.ndarray:
        """Tint the groups on their image (uint8 [H, W, 3], RGB), the largest first in the legend below."""
        colors = dict(zip(self.names, group_colors(len(self.names))))
        return draw_segmentation(image, self.labels, self.names, colors, font=font)


@torch.no_grad()
def find_groups(model: OpenVocabularyModel, inputs: Tensor, sample: Any) -> list[Groups]:
    """Compute the groups of the whole image at every stage, with the assignments of the readout.

    Args:
        model: a ``GroupViT``.
        inputs: one preprocessed image [1, 3, H, W].
        sample: its data sample; ``ori_shape`` is the size of the result.
    Returns:
        one entry per stage, the final groups last.
    Raises:
        ValueError: a model that does not group pixels.
    """
    if not isinstance(model, GroupViT):
        raise ValueError(f'{type(model).__name__} does not group pixels')
    model.prepare_text()
    inputs = model.without_padding(inputs, sample)
    height, width = inputs.shape[2:]
    padded = pad_to_multiple(inputs, model.size_divisor)
    predictions = model.group_predictions(padded)
    output = predictions.output
    # A readout of level 'tokens' classifies the groups here.
    named = predictions._replace(token_embeddings=predictions.group_embeddings)
    table = model.readout.group_table(named, model.image_context(inputs), model.use_background)[0]
    words = [*model.vocabulary.labels, 'background']
    final = [words[label] for label in table.argmax(dim=-1).tolist()]
    choice = model.readout.assignment
    seen = (padded.shape[2], padded.shape[3])
    size = tuple(sample.metainfo.get('ori_shape', (height, width))[:2])
    found = []
    for stage in range(1, len(output.soft) + 1):
        labels = group_labels(output, seen, (height, width), size, stage, choice)[0]
        joins = _joins(output, stage, choice)
        names = tuple(f'{number + 1} {final[joined]}' for number, joined in enumerate(joins))
        found.append(Groups(labels.cpu().numpy(), names, stage))
    return found


def _joins(output: GroupingOutput, stage: int, assignment: str) -> list[int]:
    """Final group with the largest share in each group of a stage."""
    if stage == len(output.soft):
        return list(range(output.features.shape[1]))
    grid = (1, output.soft[stage].shape[-1])
    later = output._replace(soft=output.soft[stage:], hard=output.hard[stage:], grid=grid)
    return compose_maps(later, assignment=assignment)[0, :, 0].argmax(dim=0).tolist()


def group_colors(count: int) -> list[RGB]:
    """``count`` colours, distinct for consecutive groups; up to 20 those of ``PALETTE``."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    golden = (5**0.5 - 1) / 2
    colors = []
    for index in range(count):
        light, rest = (0.9, 0.65, 0.45)[index % 3], (0.85, 1.0, 0.6)[index // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb(index * golden % 1, rest, light)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors
