"""GLIP training targets: token features of one prompt per image; per box, the prompt tokens that describe it.

Reading order: TrainingTargets, image_targets, pad_rows. Prompts and positive maps come from the data loader,
see ``ovd.datasets.grounding.training_prompts``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ...datasets.grounding.training_prompts import TrainingPrompt
from ...encoders.tokens.token_encoder import TokenFeatures
from .head import ImageTargets


class TrainingTargets(NamedTuple):
    """Targets of B images.

    Attributes:
        text: token features of the images' prompts, with gradients.
        prompts: of the images.
        counted: [B, L] bool, tokens that count in the token loss.
        instances: boxes of each image, unmerged, with masks if it has them.
        images: boxes of each image and their tokens, equal boxes merged.
    """

    text: TokenFeatures
    prompts: list[TrainingPrompt]
    counted: Tensor
    instances: list[InstanceData]
    images: list[ImageTargets]


def image_targets(instances: InstanceData, prompt: TrainingPrompt, length: int) -> ImageTargets:
    """Boxes of an image with their tokens, padded to ``length``; equal boxes are merged."""
    boxes = instances.bboxes.to(torch.float32)
    tokens = pad_rows([prompt.positive_map], length, boxes.device)[0]
    return merged(ImageTargets(boxes - boxes.new_tensor([0, 0, 1, 1]), tokens))


def merged(targets: ImageTargets) -> ImageTargets:
    """Merge equal boxes and their tokens, since an anchor is assigned to one box only."""
    boxes, index = targets.boxes.unique(dim=0, return_inverse=True)
    if len(boxes) == len(targets.boxes):
        return targets
    tokens = targets.tokens.new_zeros(len(boxes), targets.tokens.shape[1], dtype=torch.long)
    return ImageTargets(boxes, tokens.index_add_(0, index, targets.tokens.long()) > 0)


def pad_rows(arrays: Sequence[np.ndarray], length: int, device: torch.device, value: int = 0) -> Tensor:
    """B arrays [..., L] of tokens -> one tensor [B, ..., ``length``] on the device, in one transfer."""
    rows = np.full((len(arrays), *arrays[0].shape[:-1], length), value, dtype=arrays[0].dtype)
    for row, array in zip(rows, arrays):
        row[..., : array.shape[-1]] = array
    return torch.from_numpy(rows).to(device, non_blocking=True)
