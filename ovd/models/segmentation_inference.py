"""Score maps of an image from score maps of network inputs: whole image, sliding windows, several scales.

Maps are lazy, so memory does not grow with the number of classes times pixels. A ``Network`` maps
preprocessed inputs [N, 3, h, w], and an optional context of the whole image of each, to score maps of h x w.

Source: windows of ``slide`` as in open-mmlab/mmsegmentation: mmseg/models/segmentors/encoder_decoder.py;
``lseg`` as in isl-org/lang-seg: additional_utils (Li et al., ICLR 2022).
Reading order: Inference, Whole, Slide, MultiScale, LSegMultiScale, build_inference.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.score_maps import CutScores, FlippedScores, ScoreMaps, resized
from ..layers.score_sums import ScoreSum, SummedScores
from ..options import check_option

Network = Callable[[Tensor, Tensor | None], ScoreMaps]


class Inference(ABC):
    """How an image is passed through the network.

    Args:
        max_elements: scores computed at once, see ``argmax_labels``.
        eager_elements: see ``ScoreSum``.
    """

    def __init__(self, max_elements: int = 1 << 20, eager_elements: int = 1 << 27) -> None:
        self.max_elements, self.eager_elements = max_elements, eager_elements

    @abstractmethod
    def __call__(
        self, network: Network, inputs: Tensor, context: Tensor | None = None, black: Tensor | None = None
    ) -> ScoreMaps:
        """Compute scores of images.

        Args:
            network: see the module docstring.
            inputs: preprocessed images [B, 3, H, W].
            context: [B, ...], passed to the network with every window of an image.
            black: [3], preprocessed value of a black pixel; zeros by default.
        Returns:
            maps of H x W.
        """

    def _sum(self, size: tuple[int, int], divide: bool, parts: int) -> ScoreSum:
        return ScoreSum(size, divide, self.eager_elements, self.max_elements, parts)


class Whole(Inference):
    """The whole image in one pass."""

    def __call__(
        self, network: Network, inputs: Tensor, context: Tensor | None = None, black: Tensor | None = None
    ) -> ScoreMaps:
        return network(inputs, context)


class Slide(Inference):
    """Overlapping windows, averaged; windows beyond the border are shifted inside.

    Args:
        crop_size: side of a window, or (height, width); smaller images are one window.
        stride: step of windows, or (vertical, horizontal).
        windows_per_forward: windows per forward pass, times the batch size.
    """

    def __init__(
        self,
        crop_size: int | Sequence[int],
        stride: int | Sequence[int],
        windows_per_forward: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.crop_size, self.stride = _pair(crop_size), _pair(stride)
        if any(step > side for step, side in zip(self.stride, self.crop_size)):
            raise ValueError(f'stride {self.stride} leaves gaps between windows of {self.crop_size}')
        self.windows_per_forward = windows_per_forward

    def __call__(
        self, network: Network, inputs: Tensor, context: Tensor | None = None, black: Tensor | None = None
    ) -> ScoreMaps:
        size = (inputs.shape[2], inputs.shape[3])
        height, width = (min(pair) for pair in zip(size, self.crop_size))
        tops, lefts = (
            [min(step * index, side - crop) for index in range(-(-(side - crop) // step) + 1)]
            for side, crop, step in zip(size, (height, width), self.stride)
        )
        corners = [(top, left) for top in tops for left in lefts]
        total = self._sum(size, divide=True, parts=len(corners))
        for group in _groups(corners, self.windows_per_forward):
            windows = torch.cat(
                [inputs[:, :, top : top + height, left : left + width] for top, left in group]
            )
            maps = network(windows, _repeat(context, len(group)))
            for index, (top, left) in enumerate(group):
                total.add(maps.images(index * len(inputs), (index + 1) * len(inputs)), top, left)
        return total.scores()


class MultiScale(Inference):
    """Mean over scales of the image and, optionally, its mirror images.

    Args:
        inference: of each scale.
        scales: factors of the size; with ``base_size`` the longer side becomes ceil(base_size * scale).
        flip: add the mirrored image at each scale.
        base_size: in pixels.
        align_corners: of all resizing.
    """

    def __init__(
        self,
        inference: Inference,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        base_size: int | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__(inference.max_elements, inference.eager_elements)
        self.inference, self.flip, self.align_corners = inference, flip, align_corners
        self.scales, self.base_size = tuple(scales), base_size

    def __call__(
        self, network: Network, inputs: Tensor, context: Tensor | None = None, black: Tensor | None = None
    ) -> ScoreMaps:
        size = (inputs.shape[2], inputs.shape[3])
        total = self._sum(size, divide=True, parts=len(self.scales) * (1 + self.flip))
        for scale in self.scales:
            if self.base_size is None:
                wanted = tuple(max(1, int(side * scale + 0.5)) for side in size)
            else:
                wanted = fit_long_side(size, math.ceil(self.base_size * scale))
            image = _resize(inputs, (wanted[0], wanted[1]), self.align_corners)
            maps = self.inference(network, image, context, black)
            total.add(resized(maps, size, self.align_corners))
            if self.flip:
                mirrored = self.inference(network, image.flip(3), context, black)
                total.add(resized(FlippedScores(mirrored), size, self.align_corners))
        return total.scores()


class LSegMultiScale(Inference):
    """LSeg's evaluator: six scales, padded windows, mirror images; raw scores are summed.

    Differs from ``MultiScale(Slide)``: the last window of a row is padded with black, not shifted; each
    window is mirrored by itself and added; scales are summed, not averaged; corners are aligned.

    Args:
        base_size: the longer side becomes ceil(base_size * scale).
        crop_size: side of a window.
        stride: step of windows, by default two thirds of ``crop_size``.
        scales: see ``base_size``.
        flip: add each window's mirror image.
        windows_per_forward: windows per forward pass, mirrored ones included, times the batch size.
    """

    def __init__(
        self,
        base_size: int = 520,
        crop_size: int = 480,
        stride: int | None = None,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        windows_per_forward: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.base_size, self.crop_size = base_size, crop_size
        self.stride = crop_size * 2 // 3 if stride is None else stride
        if self.stride > self.crop_size:
            raise ValueError(f'stride {self.stride} leaves gaps between windows of {self.crop_size}')
        self.scales, self.flip, self.windows_per_forward = tuple(scales), flip, windows_per_forward

    def __call__(
        self, network: Network, inputs: Tensor, context: Tensor | None = None, black: Tensor | None = None
    ) -> ScoreMaps:
        size = (inputs.shape[2], inputs.shape[3])
        black = inputs.new_zeros(3) if black is None else black.to(inputs)
        total = self._sum(size, divide=False, parts=len(self.scales))
        for scale in self.scales:
            wanted = fit_long_side(size, math.ceil(self.base_size * scale))
            maps = self._windows(network, _resize(inputs, wanted, True), context, black)
            total.add(resized(maps, size, align_corners=True))
        return total.scores()

    def _windows(self, network: Network, image: Tensor, context: Tensor | None, black: Tensor) -> ScoreMaps:
        """Scores of an image at one scale, at its own size."""
        crop, (height, width) = self.crop_size, (image.shape[2], image.shape[3])
        size = max(height, crop), max(width, crop)
        padded = _pad(image, size, black)
        corners = [
            (top, left)
            for top in range(0, size[0] - crop + self.stride, self.stride)
            for left in range(0, size[1] - crop + self.stride, self.stride)
        ]
        total = self._sum(size, divide=True, parts=len(corners))
        for group in _groups(corners, max(1, self.windows_per_forward // (1 + self.flip))):
            windows = [padded[:, :, top : top + crop, left : left + crop] for top, left in group]
            batch = torch.cat([_pad(window, (crop, crop), black) for window in windows])
            views = torch.cat([batch, batch.flip(3)]) if self.flip else batch
            maps = network(views, _repeat(context, len(views) // len(image)))
            for index, ((top, left), window) in enumerate(zip(group, windows)):
                first = index * len(image)
                scores = maps.images(first, first + len(image))
                if self.flip:
                    first += len(batch)
                    mirrored = FlippedScores(maps.images(first, first + len(image)))
                    scores = SummedScores([scores, mirrored])
                total.add(CutScores(scores, (window.shape[2], window.shape[3])), top, left)
        return CutScores(total.scores(), (height, width))


_MODES: dict[str, type[Inference]] = {'whole': Whole, 'slide': Slide, 'lseg': LSegMultiScale}
_MULTI_SCALE = ('scales', 'flip', 'base_size')


def build_inference(test_cfg: Mapping[str, Any], align_corners: bool) -> Inference:
    """Build the inference of a ``test_cfg``.

    Args:
        test_cfg: ``mode`` 'whole', 'slide' or 'lseg', with the arguments of ``Whole``, ``Slide`` or
            ``LSegMultiScale``; the first two also take ``scales``, ``flip`` and ``base_size`` of
            ``MultiScale``.
        align_corners: of the resizing of ``MultiScale``.
    Raises:
        ValueError: an unknown mode. TypeError: an unknown or missing argument.
    """
    options = dict(test_cfg)
    mode = options.pop('mode', 'whole')
    check_option('test_cfg.mode', mode, _MODES)
    outer = {} if mode == 'lseg' else {key: options.pop(key) for key in _MULTI_SCALE if key in options}
    inference = _MODES[mode](**options)
    return MultiScale(inference, **outer, align_corners=align_corners) if outer else inference


def fit_long_side(size: tuple[int, int], wanted: int) -> tuple[int, int]:
    """(height, width) whose longer side is ``wanted``, with the proportions of ``size``, rounded half up."""
    height, width = size
    if height > width:
        return wanted, max(1, int(width * wanted / height + 0.5))
    return max(1, int(height * wanted / width + 0.5)), wanted


def _resize(image: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(image, size, mode='bilinear', align_corners=align_corners)


def _pad(image: Tensor, size: tuple[int, int], value: Tensor) -> Tensor:
    """Pad [B, 3, h, w] on the right and below with a colour [3]."""
    height, width = image.shape[2:]
    if (height, width) == tuple(size):
        return image
    padded = value.view(1, 3, 1, 1).repeat(len(image), 1, *size)
    padded[:, :, :height, :width] = image
    return padded


def _repeat(context: Tensor | None, times: int) -> Tensor | None:
    """Repeat the context of a batch for each of its windows."""
    return None if context is None else context.repeat(times, *[1] * (context.ndim - 1))


def _groups(items: Sequence[tuple[int, int]], size: int) -> list[Sequence[tuple[int, int]]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
