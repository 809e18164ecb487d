"""The convolutional image tower of a CLIP as a feature pyramid."""

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
    """The four stages of CLIP's ResNet (three-convolution stem, antialiased strides), without the pooling.

    Args:
        model, pretrained: see ``build_clip``; a convolutional tower.
        out_indices: stages to return, 0 to 3, of strides 4, 8, 16 and 32; those after the last are dropped.
        frozen_stages: 0 freezes the stem, n also the first n stages: their weights and statistics stay.
        flat_last: the last stage keeps the resolution of the one before: its antialiasing mean, 3x3, does not
            stride.
        norm_eval: the statistics of all batch norms stay, those of trained stages too.
        channels_last: memory format; faster for convolutions on a CPU.
    Raises:
        ValueError: a CLIP whose image tower is a transformer; stages that do not exist.
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
            raise ValueError(f'the image tower of {model} is a {type(tower).__name__}, not a ResNet')
        self.out_indices = tuple(out_indices)
        if list(self.out_indices) != sorted(set(self.out_indices) & set(range(4))):
            raise ValueError(f'out_indices must ascend within 0 .. 3, got {list(out_indices)}')
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f'frozen_stages must lie within -1 .. 4, got {frozen_stages}')
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
                raise ValueError('the first stage has no stride that flat_last could take out')
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
        """The statistics of frozen stages stay as they are, with ``norm_eval`` all of them."""
        super().train(mode)
        for part in self._frozen:
            part.train(False)
        if self.norm_eval:
            self.tower.eval()
        return self
