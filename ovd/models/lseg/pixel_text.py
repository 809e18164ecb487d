"""LSeg's head: pixel embeddings, cosine logits and their spatial regularisation.

Source: Li et al., "Language-driven Semantic Segmentation", ICLR 2022, Sec. 3; reference: isl-org/lang-seg:
modules/models/lseg_net.py.
Reading order: PixelTextHead, SpatialRegularization, PixelTextScores (logits computed on demand).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.cosine_classifier import l2_normalize
from ...layers.score_maps import ScoreMaps
from ...options import check_option

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'relu': F.relu,
    'lrelu': F.leaky_relu,  # slope 0.01
    'tanh': torch.tanh,
}
KINDS = ('depthwise', 'bottleneck')


class PixelTextHead(nn.Module):
    """Project dense features into the joint image-text space and score every pixel against class embeddings.

    Holds no parameter that depends on the number of classes.

    Args:
        in_channels: C, width of the features.
        embed_dim: D, width of the joint space.
        temperature: divides the cosines; constant.
        with_background: learn a background embedding, the last channel of the logits.
        regularization: arguments of ``SpatialRegularization``; None: no regularisation.
        half: compute logits in float16 to reproduce the rounding of the released code on a GPU; by default
            float32, also under mixed precision.
    """

    def __init__(
        self,
        in_channels: int = 256,
        embed_dim: int = 512,
        temperature: float = 0.07,
        with_background: bool = False,
        regularization: Mapping[str, Any] | None = None,
        half: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.half_precision = half
        self.project = nn.Conv2d(in_channels, embed_dim, 1)
        self.background = nn.Parameter(torch.randn(embed_dim) * 0.01) if with_background else None
        self.regularization = None if regularization is None else SpatialRegularization(**regularization)

    @property
    def embed_dim(self) -> int:
        """D, width of the joint space."""
        return self.project.out_channels

    def embed(self, features: Tensor) -> Tensor:
        """Features [B, C, h, w] -> pixel_embeddings [B, D, h, w], float32, unit length along D."""
        return F.normalize(self.project(features).float(), dim=1, eps=1e-8)

    def forward(self, features: Tensor, text_embeddings: Tensor) -> 'PixelTextScores':
        """Logits of every pixel for every class.

        Args:
            features: [B, C, h, w].
            text_embeddings: [K, D], or [B, K, D] with classes per image; normalised here.
        Returns:
            scores of K classes, or K + 1 with background last, on the grid of the features.
        Raises:
            ValueError: ``text_embeddings`` of another width, as from another image-text model.
        """
        shape = list(text_embeddings.shape)
        if shape[-1] != self.embed_dim:
            raise ValueError(
                f'class embeddings have width {shape[-1]}, the head (embed_dim) {self.embed_dim}: '
                f'they come from another image-text model'
            )
        classes = l2_normalize(text_embeddings)
        if self.background is not None:
            background = l2_normalize(self.background).expand(*shape[:-2], 1, -1)
            classes = torch.cat([classes, background], dim=-2)
        return PixelTextScores(
            self.embed(features), classes, 1 / self.temperature, self.regularization, self.half_precision
        )

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}'


class SpatialRegularization(nn.Module):
    """Smooth the logit map of each class by a 3 x 3 filter shared by all classes, ``depth`` times.

    Equivariant to permutations of the classes, and independent of their number.

    Args:
        kind: 'depthwise' filters each map; 'bottleneck' also adds the maximum over the classes of its input.
        depth: number of applications, with shared weights; 0 counts as 1, as in the released code.
        activation: between two applications: 'relu', 'lrelu' (slope 0.01) or 'tanh'; none after the last.
    """

    def __init__(self, kind: str = 'bottleneck', depth: int = 1, activation: str = 'lrelu') -> None:
        super().__init__()
        check_option('kind of spatial regularization', kind, KINDS)
        check_option('activation of spatial regularization', activation, ACTIVATIONS)
        self.kind, self.activation = kind, activation
        self.passes = max(depth, 1)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    @property
    def with_peak(self) -> bool:
        """Whether a pass adds the maximum over all classes."""
        return self.kind == 'bottleneck'

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [B, K, h, w] of all classes -> the same, smoothed."""
        for index in range(self.passes):
            logits = self.step(index, logits, logits.amax(1, keepdim=True) if self.with_peak else None)
        return logits

    def step(self, index: int, logits: Tensor, peak: Tensor | None) -> Tensor:
        """Apply the block once.

        Args:
            index: 0 for the first application; the last has no activation.
            logits: [B, K', h, w], of some or all classes.
            peak: [B, 1, h, w], maximum of the logits over all classes, if ``with_peak``.
        """
        with torch.autocast(logits.device.type, enabled=False):
            smooth = self.conv(logits.flatten(0, 1)[:, None]).view_as(logits)
        if peak is not None:
            smooth = smooth + peak
        return smooth if index == self.passes - 1 else ACTIVATIONS[self.activation](smooth)

    def extra_repr(self) -> str:
        return f'kind={self.kind!r}, passes={self.passes}, activation={self.activation!r}'


class PixelTextScores(ScoreMaps):
    """Cosine logits, optionally regularised, computed for the requested rows and classes.

    Keeps the pixel and class embeddings and, for 'bottleneck' regularisation, one map per application, but no
    map per class. Differentiable.

    Args:
        pixel_embeddings: [B, D, h, w], float32, unit length.
        class_embeddings: [C, D], or [B, C, D] with classes per image; unit length.
        scale: multiplies the cosines.
        regularization: applied to the logits.
        half: round scaled embeddings and logits to float16, as the released code does.
        max_elements: logits held at once while taking the maximum over the classes.
    """

    def __init__(
        self,
        pixel_embeddings: Tensor,
        class_embeddings: Tensor,
        scale: float,
        regularization: SpatialRegularization | None = None,
        half: bool = False,
        max_elements: int = 1 << 24,
    ) -> None:
        self.batch, _, self.height, self.width = pixel_embeddings.shape
        self.channels = class_embeddings.shape[-2]
        self.device, self.dtype = pixel_embeddings.device, torch.float32
        self.pixel_embeddings, self.class_embeddings = pixel_embeddings, class_embeddings
        self.scale, self.regularization, self.half = scale, regularization, half
        self.max_elements = max_elements
        if half:  # float16 products are exact in float32, in which a GPU accumulates them
            self._pixels = (pixel_embeddings.half() * torch.tensor(scale)).float()
            self._classes = class_embeddings.half().float()
        else:
            self._pixels, self._classes = pixel_embeddings, class_embeddings * scale
        self._peaks: dict[int, Tensor] = {}

    @property
    def kept_elements(self) -> int:
        return self.pixel_embeddings.numel()

    def rows(self, start: int, stop: int, channels: slice = slice(None)) -> Tensor:
        passes = 0 if self.regularization is None else self.regularization.passes
        return self._smoothed(passes, start, stop, channels)

    def images(self, start: int, stop: int) -> ScoreMaps:
        if (start, stop) == (0, self.batch):
            return self
        per_image = self.class_embeddings.ndim == 3
        return PixelTextScores(
            self.pixel_embeddings[start:stop],
            self.class_embeddings[start:stop] if per_image else self.class_embeddings,
            self.scale,
            self.regularization,
            self.half,
            self.max_elements,
        )

    def _smoothed(self, passes: int, start: int, stop: int, channels: slice) -> Tensor:
        """Logits of some rows after the first ``passes`` applications of the regularisation.

        Each 3 x 3 pass needs one more row on both sides, so ``passes`` extra rows are computed and cropped.
        """
        top, bottom = max(start - passes, 0), min(stop + passes, self.height)
        logits = self._correlate(top, bottom, channels)
        for index in range(passes):
            assert self.regularization is not None
            peak = None
            if self.regularization.with_peak:
                has_all = logits.shape[1] == self.channels
                peak = logits.amax(1, keepdim=True) if has_all else self._peak(index)[:, :, top:bottom]
            logits = self.regularization.step(index, logits, peak)
        return logits[:, :, start - top : stop - top]

    def _correlate(self, start: int, stop: int, channels: slice) -> Tensor:
        """Plain logits [B, C', stop - start, w]."""
        pixels = self._pixels[:, :, start:stop].flatten(2)
        classes = self._classes[..., channels, :].expand(self.batch, -1, -1)
        with torch.autocast(self.device.type, enabled=False):
            logits = torch.bmm(classes, pixels)
        logits = logits.half().float() if self.half else logits
        return logits.unflatten(2, (stop - start, self.width))

    def _peak(self, index: int) -> Tensor:
        """Maximum over all classes of the input of a pass, [B, 1, h, w]; cached unless gradients are on."""
        if index in self._peaks:
            return self._peaks[index]
        count = max(1, self.max_elements // (self.batch * self.height * self.width))
        peak: Tensor | None = None
        for first in range(0, self.channels, count):
            some = self._smoothed(index, 0, self.height, slice(first, first + count)).amax(1, keepdim=True)
            peak = some if peak is None else torch.maximum(peak, some)
        assert peak is not None
        if not torch.is_grad_enabled():
            self._peaks[index] = peak
        return peak
