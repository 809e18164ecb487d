"""Base class of open-vocabulary segmentors: from score maps to labels of the original image.

Reading order: ``OpenVocabularySegmentor`` (``predict`` is the flow of a batch), helpers.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor

from ..layers.geometry import by_shape, pad_to_multiple
from ..layers.score_maps import (
    ChannelScores,
    CutScores,
    FlippedScores,
    ScoreMaps,
    argmax_labels,
    materialize,
    resized,
)
from .base import OpenVocabularyModel
from .segmentation_inference import build_inference


class OpenVocabularySegmentor(OpenVocabularyModel, BaseSegmentor):
    """An mmseg segmentor for any vocabulary.

    Subclasses implement ``score_maps``, ``use_text_embeddings``, ``extract_feat`` and ``loss``. Predictions
    are class indices; index K is background in models that have one. Score maps of all classes at full size
    are only built for ``keep_scores``.

    Args:
        align_corners: of all resizing of scores.
        size_divisor: inputs are padded on the right and below to multiples of it, and the scores cropped.
        test_cfg: see ``build_inference``; further keys: ``keep_scores`` (store the scores of all classes at
            the original size in ``seg_logits``), ``background`` (False: background pixels get their best
            class instead).
        text: arguments of ``TextSource``.
        **kwargs: of mmseg's BaseSegmentor.
    """

    answers = 'pixels'

    def __init__(
        self,
        *args: Any,
        align_corners: bool = False,
        size_divisor: int = 1,
        test_cfg: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, text=text, **kwargs)
        self.align_corners, self.size_divisor = align_corners, size_divisor
        self.train_cfg = train_cfg
        self.set_test_cfg({} if test_cfg is None else test_cfg)

    def set_test_cfg(self, test_cfg: Mapping[str, Any]) -> None:
        """Set the options of ``predict``."""
        options = dict(test_cfg)
        self.keep_scores = options.pop('keep_scores', False)
        self.use_background = options.pop('background', True)
        self.inference = build_inference(options, self.align_corners)

    @property
    def with_background(self) -> bool:
        """Whether ``score_maps`` has a background channel K."""
        return False

    @property
    def background_index(self) -> int | None:
        """Label of background in predictions: K, or None if every pixel gets a class."""
        return len(self.vocabulary) if self.with_background and self.use_background else None

    def set_background(self, use: bool) -> None:
        if not self.with_background:
            super().set_background(use)
        self.use_background = use

    @property
    def out_channels(self) -> int:
        """Number of labels, read by mmseg's test-time augmentation."""
        return len(self.vocabulary) + (self.background_index is not None)

    @abstractmethod
    def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        """Compute scores of preprocessed images or windows.

        Args:
            inputs: [B, 3, H, W]; H and W are multiples of ``size_divisor``.
            context: [B, ...], ``image_context`` of the whole image of each input.
        Returns:
            scores of K classes (with background K + 1) on any grid that covers the inputs.
        """

    def image_context(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Tensor | None:
        """Compute what ``score_maps`` of a window needs of its whole image.

        Args:
            inputs: whole preprocessed images [B, 3, H, W] of one size, without padding.
            data_samples: their B samples, if any.
        Returns:
            [B, ...], or None to call ``score_maps`` without context.
        """
        return None

    def add_to_samples(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> None:
        """Add further results to the samples of a batch of preprocessed images [B, 3, H, W]."""

    def test_step(self, data: Any) -> list[SegDataSample]:
        """Predict a collated batch; images may differ in size, which mmseg does not support."""
        groups = by_shape(data['inputs'])
        if len(groups) < 2:
            return super().test_step(data)
        found: dict[int, SegDataSample] = {}
        for indices in groups:
            part = {key: [values[index] for index in indices] for key, values in data.items()}
            found.update(zip(indices, super().test_step(part)))
        return [found[index] for index in range(len(found))]

    def val_step(self, data: Any) -> list[SegDataSample]:
        """As ``test_step``."""
        return self.test_step(data)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Label every pixel.

        Args:
            inputs: preprocessed images [B, 3, H, W]; padding recorded in the samples is removed first.
            data_samples: B samples with ``ori_shape``; by default the inputs are the original images.
        Returns:
            the samples with ``pred_sem_seg`` (int64 [1, H0, W0] at ``ori_shape``), and ``seg_logits`` with
            ``test_cfg.keep_scores``.
        """
        if data_samples is None:
            shape = tuple(inputs.shape[2:])
            data_samples = [SegDataSample(metainfo={'ori_shape': shape}) for _ in inputs]
        for images, members in self._equal_sizes(inputs, data_samples):
            for sample, scores in zip(members, self._original_scores(images, members)):
                labels = argmax_labels(scores, self.inference.max_elements)
                sample.pred_sem_seg = PixelData(data=labels)
                if self.keep_scores:
                    sample.seg_logits = PixelData(data=materialize(scores, self.inference.max_elements)[0])
            self.add_to_samples(images, members)
        return data_samples

    def inference_scores(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> list[ScoreMaps]:
        """Scores of each sample at its original size, of which ``predict`` takes the argmax."""
        found: dict[int, ScoreMaps] = {}
        for images, members in self._equal_sizes(inputs, data_samples):
            found.update(zip(map(id, members), self._original_scores(images, members)))
        return [found[id(sample)] for sample in data_samples]

    def encode_decode(self, inputs: Tensor, batch_img_metas: Any = None) -> Tensor:
        """Scores [B, K, H, W] of one forward pass, at the size of the inputs."""
        return materialize(self._pixel_scores(inputs, self.image_context(inputs)))

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        return self.encode_decode(inputs)

    def _original_scores(self, images: Tensor, members: Sequence[SegDataSample]) -> list[ScoreMaps]:
        """Scores of images of one size, each at its original size."""
        context = self.image_context(images, members)
        maps = self.inference(self._pixel_scores, images, context, self._black())
        if self.with_background and not self.use_background:
            maps = ChannelScores(maps, maps.channels - 1)
        return [
            self._to_original(maps.images(index, index + 1), sample) for index, sample in enumerate(members)
        ]

    def _to_original(self, scores: ScoreMaps, sample: SegDataSample) -> ScoreMaps:
        if sample.metainfo.get('flip'):
            scores = FlippedScores(scores, sample.metainfo['flip_direction'])
        height, width = sample.metainfo.get('ori_shape', scores.size)[:2]
        return resized(scores, (height, width), self.align_corners)

    def _pixel_scores(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        """Scores of one forward pass, at the size of the inputs [B, 3, H, W]."""
        self.prepare_text()
        height, width = inputs.shape[2:]
        padded = pad_to_multiple(inputs, self.size_divisor)
        maps = self.score_maps(padded) if context is None else self.score_maps(padded, context)
        maps = resized(maps, (padded.shape[2], padded.shape[3]), self.align_corners)
        return maps if padded is inputs else CutScores(maps, (height, width))

    def _black(self) -> Tensor | None:
        """Preprocessed value [3] of a black pixel."""
        buffers = dict(self.data_preprocessor.named_buffers())
        mean, std = buffers.get('mean'), buffers.get('std')
        if mean is None or std is None:
            return None
        return (-mean / std).flatten().expand(3)

    def without_padding(self, inputs: Tensor, sample: SegDataSample) -> Tensor:
        """Crop the batch padding from a preprocessed image [1, 3, H, W]."""
        ((image, _),) = self._equal_sizes(inputs, [sample])
        return image

    def _equal_sizes(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample]
    ) -> list[tuple[Tensor, list[SegDataSample]]]:
        """Crop the batch padding and group images by size, so that no result depends on the batch."""
        groups: dict[tuple[int, int, int, int], list[int]] = {}
        for index, sample in enumerate(data_samples):
            groups.setdefault(_content(sample, inputs.shape[2], inputs.shape[3]), []).append(index)
        return [
            (inputs[indices, :, top:bottom, left:right], [data_samples[index] for index in indices])
            for (top, bottom, left, right), indices in groups.items()
        ]


def _content(sample: SegDataSample, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the input without padding."""
    meta = sample.metainfo
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
    return top, height - bottom, left, width - right
