"""Dense image towers: an image becomes a map of vectors that can be compared with words.

Reading order: DenseTower (windows, and what all towers share), ClipDense, build_dense_tower.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..loading import DTYPES, PathLike, load_clip
from .attention import find_variant
from .patches import PatchTower, find_patch_tower
from .proxy import ProxyTower
from .windows import Windows


class DenseTower(nn.Module):
    """A frozen image tower: image -> [B, D, h, w] in the joint space of images and words.

    With ``windows`` the map is made of whole-image vectors of overlapping windows; then any tower will do.
    Otherwise it is made of the patches of one pass.

    Attributes:
        embed_dim: D.
        image_size: side of the square that ``pool`` takes, pixels.
        mean, std: of RGB values in [0, 1].
        fingerprint: of weights and architecture; that of the text tower which belongs to it.
        stride: pixels of the input per cell of the map; sides of inputs are multiples of it.
        dtype: of the computation.
    """

    embed_dim: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    dtype: torch.dtype = torch.float32

    def __init__(self, windows: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.windows = None if windows is None else Windows(**windows)

    @property
    def stride(self) -> int:
        return self.patch_stride if self.windows is None else self.windows.stride

    @property
    def patch_stride(self) -> int:
        """Pixels of the input per patch."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map of an image.

        Args:
            images: normalised by ``mean`` and ``std``, [B, 3, H, W]; H and W multiples of ``stride``.
        Returns:
            [B, D, H / stride, W / stride], float32. Patches have unit length, means of windows at most that:
            a cosine with them is the mean of the windows' cosines.
        """
        images = images.to(self.dtype)
        with torch.autocast(images.device.type, enabled=False):
            if self.windows is None:
                return F.normalize(self.patches(images).float(), dim=1)
            return self.windows(images, self.embed, self.image_size)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised squares [N, 3, image_size, image_size] -> [N, D], float32, unit length."""
        return F.normalize(self.pool(images).float(), dim=-1)

    def pool(self, images: Tensor) -> Tensor:
        """The tower's own vectors of whole images, [N, 3, image_size, image_size] -> [N, D]."""
        raise NotImplementedError

    def patches(self, images: Tensor) -> Tensor:
        """Vectors of patches [B, D, h, w], of any length."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'DenseTower':
        """Stay in eval mode: the tower is frozen."""
        return super().train(False)


class ClipDense(DenseTower):
    """The image tower of a CLIP of open_clip's.

    Args:
        model, pretrained, dtype: see ``load_clip``.
        attention: what the last block does, see ``find_variant``; towers without attention only know 'plain'.
        windows: arguments of ``Windows``.
        proxy: arguments of ``ProxyTower``, for ``attention='proxyclip'``.
    Raises:
        ValueError: a tower without patches that can be compared with words, when no windows are asked for;
            'proxyclip' without a proxy, or a proxy for another attention.
    """

    def __init__(
        self,
        model: PathLike,
        pretrained: PathLike | None = None,
        attention: str | Mapping[str, Any] = 'naclip',
        windows: Mapping[str, Any] | None = None,
        proxy: Mapping[str, Any] | None = None,
        dtype: str = 'float32',
    ) -> None:
        super().__init__(windows)
        clip = load_clip(model, pretrained, dtype)
        self.embed_dim, self.image_size = clip.embed_dim, clip.image_size
        self.mean, self.std, self.fingerprint = clip.mean, clip.std, clip.fingerprint
        self.dtype = DTYPES[dtype]
        self.visual = clip.model.get_submodule('visual')
        self.variant = find_variant(attention)
        self.patch_tower: PatchTower | None = None
        if windows is None:
            try:
                self.patch_tower = find_patch_tower(self.visual)
            except ValueError as error:
                raise ValueError(
                    f'CLIP {model} has no dense features: {error}; give windows=dict(stride=...) instead'
                ) from None
            if not self.patch_tower.with_attention and attention not in ('plain', 'proxyclip'):
                raise ValueError(
                    f'CLIP {model} has no attention to exchange: attention must be plain, got {attention!r}'
                )
        if self.variant.regroup is not None and proxy is None:
            raise ValueError("attention 'proxyclip' needs proxy=dict(model=..., pretrained=...)")
        if self.variant.regroup is None and proxy is not None:
            raise ValueError(f"a proxy goes with attention 'proxyclip', not with {attention!r}")
        self.proxy = None if proxy is None else ProxyTower(**proxy)
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(clip, name)).view(3, 1, 1)
            self.register_buffer(f'_{name}', values, persistent=False)
        self._mean: Tensor
        self._std: Tensor

    @property
    def patch_stride(self) -> int:
        assert self.patch_tower is not None
        return self.patch_tower.stride

    def pool(self, images: Tensor) -> Tensor:
        found = self.visual(images)
        return found[0] if isinstance(found, tuple) else found

    def patches(self, images: Tensor) -> Tensor:
        assert self.patch_tower is not None
        proxy = None if self.proxy is None else self.proxy(images.float() * self._std + self._mean)
        return self.patch_tower(images, self.variant, proxy)


def build_dense_tower(config: Mapping[str, Any]) -> DenseTower:
    """The tower of a configuration.

    Args:
        config: ``kind`` 'clip' (default) with the arguments of ``ClipDense``, or 'tips' with those of
            ``TipsDense``.
    """
    options = dict(config)
    kind = options.pop('kind', 'clip')
    if kind == 'clip':
        return ClipDense(**options)
    if kind == 'tips':
        from .tips import TipsDense

        return TipsDense(**options)
    raise ValueError(f"tower kind {kind!r} is none of 'clip', 'tips'")
