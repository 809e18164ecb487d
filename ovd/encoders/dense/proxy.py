"""A second image tower that tells which patches are alike: DINO, DINOv2, DINOv3 or any plain ViT of timm."""

import os
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints.loading import load_into, load_tensors
from ..loading import PathLike

_RANDOM = 'random:'
_HUB = 'timm:'


class ProxyTower(nn.Module):
    """Patch features of a frozen transformer of timm.

    Args:
        model: its name in timm ('vit_base_patch16_224.dino').
        pretrained: a weights file, 'timm:TAG' (timm downloads the release), or 'random:SEED'.
        mean, std: of its pixels in [0, 1]; by default those that timm knows.
    Raises:
        ValueError: no model of timm, or one without patches; weights of another model.
        FileNotFoundError: no such file, or a release that cannot be had offline.
    """

    def __init__(
        self,
        model: str,
        pretrained: PathLike,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.trunk = _create(model, os.fspath(pretrained))
        if not hasattr(self.trunk, 'patch_embed') or not hasattr(self.trunk, 'num_prefix_tokens'):
            raise ValueError(f'the proxy {model!r} is no plain transformer: it has no patches')
        self.trunk.eval().requires_grad_(False)
        self.stride = int(self.trunk.patch_embed.feat_ratio())
        known = self.trunk.default_cfg
        for name, values in (('mean', mean or known['mean']), ('std', std or known['std'])):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """RGB pixels [B, 3, H, W] in [0, 1] -> features [B, C, h, w], unit length; no patch is cut."""
        height, width = (side // self.stride * self.stride for side in pixels.shape[2:])
        images = ((pixels - self.mean) / self.std)[:, :, :height, :width]
        tokens = self.trunk.forward_features(images)[:, self.trunk.num_prefix_tokens :]
        grid = (height // self.stride, width // self.stride)
        return F.normalize(tokens.float(), dim=-1).mT.unflatten(2, grid)

    def train(self, mode: bool = True) -> 'ProxyTower':
        """Stay in eval mode: the tower is frozen."""
        return super().train(False)


def _create(model: str, pretrained: str) -> Any:
    tag = pretrained.removeprefix(_HUB)
    architecture = model.partition('.')[0]
    if architecture not in timm.list_models('*vit*') + timm.list_models('eva*') + timm.list_models('deit*'):
        raise ValueError(f'the proxy {model!r} is no vision transformer of timm')
    options: dict[str, Any] = {'num_classes': 0, 'dynamic_img_size': True}
    if pretrained.startswith(_HUB):
        try:
            return timm.create_model(f'{architecture}.{tag}', pretrained=True, **options)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f'the release {tag!r} of {model!r} cannot be had: {" ".join(str(error).split())[:160]}; '
                'name a weights file instead'
            ) from None
    with torch.random.fork_rng(devices=[]):
        if pretrained.startswith(_RANDOM):
            torch.manual_seed(int(pretrained.removeprefix(_RANDOM)))
        trunk = timm.create_model(architecture, pretrained=False, **options)
    if not pretrained.startswith(_RANDOM):
        load_into(
            trunk, load_tensors(pretrained), allow_unexpected=('head.*', 'fc_norm.*'), source=pretrained
        )
    return trunk
