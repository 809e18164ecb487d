"""Dense prediction transformers (DPT): a feature pyramid from a plain ViT, and the decoder that fuses it.

Source: Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, as isl-org/lang-seg uses it.
Reading order: DPTViT (tokens to pyramid) with its readouts and Reassemble, ResNetPyramid (another pyramid),
DPTFusion (pyramid to one map) with FusionBlock and ResidualConvUnit. The ViTs are in vit_tokens.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...options import check_option
from ...registry import MODELS
from ..vit_tokens import create_timm, load_pretrained, pretrained_source

STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class DPTViT(BaseModule):
    """The tokens of a ViT at four depths as feature maps of strides 4, 8, 16 and 32.

    Args:
        vit: config of the transformer, 'ovd.TimmViT' or 'ovd.ClipViT'.
        hooks: 0-based indices of the blocks whose outputs become levels 1 to 4; later blocks are dropped.
        channels: widths of the four levels.
        readout: use of the class token: 'project' (a linear layer on each patch token concatenated with it),
            'add' or 'ignore'.
        init_cfg: dict(type='Pretrained', checkpoint=FILE) loads the ViT when training starts; 'timm:TAG'
            instead of a file downloads that release of the model from timm's hub.
    """

    _is_init: bool

    def __init__(
        self,
        vit: Mapping[str, Any],
        hooks: Sequence[int] = (5, 11, 17, 23),
        channels: Sequence[int] = (256, 512, 1024, 1024),
        readout: str = 'project',
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if len(hooks) != 4 or len(channels) != 4:
            raise ValueError(f'expected four hooks and channels, got {list(hooks)} and {list(channels)}')
        check_option('readout', readout, _READOUTS)
        self.vit = MODELS.build(vit)
        self.hooks, self.channels = tuple(hooks), tuple(channels)
        self.vit.drop_blocks_after(hooks)
        patch = self.vit.patch_size
        self.readouts = nn.ModuleList(_READOUTS[readout](self.vit.width) for _ in hooks)
        self.reassemble = nn.ModuleList(
            Reassemble(self.vit.width, width, patch / stride) for width, stride in zip(channels, STRIDES)
        )
        self.size_divisor = max(patch, STRIDES[-1] * patch // _power_of_two(patch))

    def init_weights(self) -> None:
        """Load the weights named by ``init_cfg`` into the ViT."""
        source = pretrained_source(self.init_cfg)
        if source is None:
            super().init_weights()
        elif not self._is_init:
            self.vit.load(source)
            self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W], sides divisible by ``size_divisor`` -> maps [B, channels[n], H / s, W / s]."""
        tokens, (height, width) = self.vit(images, self.hooks)
        levels = []
        for level, readout, reassemble in zip(tokens, self.readouts, self.reassemble):
            patches = readout(level[:, 0], level[:, self.vit.num_prefix_tokens :])
            levels.append(reassemble(patches.mT.unflatten(2, (height, width))))
        return tuple(levels)


class ProjectReadout(nn.Module):
    """Linear layer and GELU on each patch token concatenated with the class token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * width, width)

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        """[B, E] and [B, N, E] -> [B, N, E]; the class token's term is computed once for all patches."""
        for_patch, for_class = self.project.weight.chunk(2, dim=1)
        shared = F.linear(class_token, for_class, self.project.bias)
        return F.gelu(F.linear(patches, for_patch) + shared[:, None])


class AddReadout(nn.Module):
    """Add the class token to every patch token."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        return patches + class_token[:, None]


class IgnoreReadout(nn.Module):
    """Drop the class token."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        return patches


_READOUTS: dict[str, type[nn.Module]] = {
    'project': ProjectReadout,
    'add': AddReadout,
    'ignore': IgnoreReadout,
}


class Reassemble(nn.Module):
    """1 x 1 convolution to another width, then learned resampling.

    Args:
        in_channels, out_channels: widths.
        scale: factor, rounded to a power of two; above 1 a transposed convolution with kernel = stride, below
            1 a strided 3 x 3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1)
        up, down = _power_of_two(scale), _power_of_two(1 / scale)
        self.resample: nn.Module
        if up > 1:
            self.resample = nn.ConvTranspose2d(out_channels, out_channels, up, stride=up)
        elif down > 1:
            self.resample = nn.Conv2d(out_channels, out_channels, 3, stride=down, padding=1)
        else:
            self.resample = nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.resample(self.project(features))


def _power_of_two(value: float) -> int:
    """Nearest power of two on a logarithmic scale, at least 1: 14 -> 16, 3.5 -> 4."""
    return 1 << max(0, round(math.log2(value)))


@MODELS.register_module()
class ResNetPyramid(BaseModule):
    """The last four stages of a convolutional network of timm, strides 4 to 32.

    timm's and torchvision's ResNets share their key names, so weights of either load.

    Args:
        model: name of a timm model with ``features_only``.
        options: further arguments of that model.
        init_cfg: see ``DPTViT``.
    """

    size_divisor = STRIDES[-1]
    _is_init: bool

    def __init__(
        self, model: str = 'resnet101', options: Mapping[str, Any] | None = None, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.model, self.options = model, dict(options or {})
        net: Any = self._create()
        strides = tuple(net.feature_info.reduction())
        if strides[-4:] != STRIDES:
            raise ValueError(f'{model!r} has feature maps of strides {strides}, expected last {STRIDES}')
        self.net, self.channels = net, tuple(net.feature_info.channels()[-4:])

    def init_weights(self) -> None:
        """Load the weights named by ``init_cfg`` into the network."""
        source = pretrained_source(self.init_cfg)
        if source is None:
            super().init_weights()
        elif not self._is_init:
            unused = ('fc.*', 'head.*', 'classifier.*')
            load_pretrained(self.net, source, self._create, self.model, unused)
            self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> maps [B, channels[n], H / s, W / s]."""
        return tuple(self.net(images)[-4:])

    def _create(self, pretrained: bool = False, tag: str = '') -> nn.Module:
        return create_timm(self.model, pretrained, tag, features_only=True, **self.options)


@MODELS.register_module()
class DPTFusion(BaseModule):
    """RefineNet decoder: fuse from the coarsest level to the finest, then upsample by two.

    The released code has an unused residual unit in the coarsest level; it is left out here.

    Args:
        in_channels: widths of the four levels, finest first.
        out_channels: F, width of the decoder.
        norm_cfg: normalisation in the residual units; None: biases in their convolutions instead.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (256, 512, 1024, 1024),
        out_channels: int = 256,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.out_channels = out_channels
        self.lateral = nn.ModuleList(
            nn.Conv2d(width, out_channels, 3, padding=1, bias=False) for width in in_channels
        )
        last = len(in_channels) - 1
        self.fusion = nn.ModuleList(
            FusionBlock(out_channels, norm_cfg, with_lateral=level < last) for level in range(last + 1)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_n, h / 2**n, w / 2**n], finest first -> [B, F, 2h, 2w]."""
        fused: Tensor | None = None
        for level, lateral, fusion in reversed(list(zip(levels, self.lateral, self.fusion, strict=True))):
            fused = fusion(lateral(level), fused)
        assert fused is not None
        return fused


class FusionBlock(nn.Module):
    """Refine a level, add it to the coarser ones, refine the sum, and double the resolution.

    Args:
        channels: F.
        norm_cfg: see ``DPTFusion``.
        with_lateral: False for the coarsest level, which is added to nothing.
    """

    def __init__(self, channels: int, norm_cfg: Mapping[str, Any] | None, with_lateral: bool) -> None:
        super().__init__()
        self.refine_lateral = ResidualConvUnit(channels, norm_cfg) if with_lateral else None
        self.refine = ResidualConvUnit(channels, norm_cfg)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, coarser: Tensor | None = None) -> Tensor:
        """Level [B, F, h, w] and the fused coarser ones [B, F, h, w] -> [B, F, 2h, 2w].

        The released code puts the 1 x 1 convolution after the interpolation; the two commute, since
        interpolation weights sum to 1, and before it there is a quarter of the pixels.
        """
        if self.refine_lateral is not None:
            level = coarser + self.refine_lateral(level)
        level = self.project(self.refine(level))
        return F.interpolate(level, scale_factor=2, mode='bilinear', align_corners=True)


class ResidualConvUnit(nn.Module):
    """x + norm(conv(relu(norm(conv(relu(x))))))."""

    def __init__(self, channels: int, norm_cfg: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=norm_cfg is None)
        self.norm1 = _norm(channels, norm_cfg)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=norm_cfg is None)
        self.norm2 = _norm(channels, norm_cfg)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.norm1(self.conv1(F.relu(features)))
        return features + self.norm2(self.conv2(F.relu(inner)))


def _norm(channels: int, norm_cfg: Mapping[str, Any] | None) -> nn.Module:
    return nn.Identity() if norm_cfg is None else build_norm_layer(dict(norm_cfg), channels)[1]
