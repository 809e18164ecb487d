"""CLIP's convolutional image tower as a feature pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..encoders.loading import PathLike, build_clip
from ..registry import MODELS

STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class ClipResNet(BaseModule):
    """The four stages of CLIP's ResNet (three-convolution stem, antialiased strides), without its pooling.

    Args:
        model, pretrained: see ``build_clip``; a CLIP with a ResNet.
        out_indices: ascending stages to return, 0 to 3, of strides 4, 8, 16 and 32; later ones are dropped.
        frozen_stages: 0 freezes the stem, n also the first n stages, with their batch norm statistics.
        flat_last: give the last stage the resolution of the one before: its 3 x 3 average pool has stride 1.
        norm_eval: freeze the statistics of all batch norms, also of trained stages.
        channels_last: memory format; faster for convolutions on a CPU.
    Raises:
        ValueError: the image tower is not a ResNet; invalid ``out_indices``.
    """

    def __init__(
        self,
        model: PathLike,
        pretrained: PathLike | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        flat_last: bool = False,
        norm_eval: bool = False,
        channels_last: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        tower: Any = build_clip(model, pretrained).model.get_submodule('visual')
        if not hasattr(tower, 'layer4'):
            raise ValueError(f'image tower of {model} is a {type(tower).__name__}, expected a ResNet')
        self.out_indices = tuple(out_indices)
        if list(self.out_indices) != sorted(set(self.out_indices) & set(range(4))):
            raise ValueError(f'out_indices must be ascending stages from 0 to 3, got {list(out_indices)}')
        count = self.out_indices[-1] + 1
        tower.attnpool = None
        for index in range(count, 4):
            setattr(tower, f'layer{index + 1}', None)
        self.tower = tower
        self.stages = [getattr(tower, f'layer{index + 1}') for index in range(count)]
        self.channels = tuple(self.stages[index][-1].conv3.out_channels for index in self.out_indices)
        self.size_divisor = STRIDES[count - 1]
        if flat_last:
            if count == 1:
                raise ValueError('flat_last: the first stage has no stride to remove')
            first = self.stages[-1][0]
            first.avgpool = nn.AvgPool2d(3, stride=1, padding=1)
            first.downsample[0] = nn.AvgPool2d(3, stride=1, padding=1)
            self.size_divisor = STRIDES[count - 2]
        stem = [module for name, module in tower.named_children() if not name.startswith('layer')]
        self._frozen = [] if frozen_stages < 0 else [*stem, *self.stages[:frozen_stages]]
        for part in self._frozen:
            part.requires_grad_(False)
        self.norm_eval = norm_eval
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        tower.to(memory_format=self.memory_format)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W], normalised for this CLIP -> maps [B, C_n, H / s, W / s]."""
        features = self.tower.stem(images.contiguous(memory_format=self.memory_format))
        levels = []
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in self.out_indices:
                levels.append(features)
        return tuple(levels)

    def train(self, mode: bool = True) -> 'ClipResNet':
        """Switch mode; batch norms of frozen stages, with ``norm_eval`` all of them, stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.train(False)
        if self.norm_eval:
            self.tower.eval()
        return self
