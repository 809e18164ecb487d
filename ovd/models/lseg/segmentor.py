"""LSeg: embed every pixel in CLIP's joint image-text space and classify it by cosine with class embeddings.

Source: Li et al., "Language-driven Semantic Segmentation", ICLR 2022; reference: isl-org/lang-seg.
Reading order: LSeg (features, scores, loss), helpers. Backbones and decoder are in dpt.py, cosine logits and
spatial regularisation in pixel_text.py, inference in ../segmentor.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ...encoders.text_embeddings import TextEmbeddings
from ...layers.geometry import pad_to_multiple
from ...layers.score_maps import CutScores, ScoreMaps, resized
from ...options import check_option
from ...registry import MODELS
from ...text.vocabulary import Vocabulary
from ..segmentor import OpenVocabularySegmentor
from .pixel_loss import pixel_cross_entropy
from .pixel_text import PixelTextHead

IGNORED = -1
LOSS_SIZES = ('image', 'features')


@MODELS.register_module()
class LSeg(OpenVocabularySegmentor):
    """Segmentor with a pixel embedding from any backbone and neck, scored against class embeddings.

    Only the image side is trained; class embeddings are fixed. Training reads ``gt_sem_seg`` of the samples:
    class indices 0 .. K - 1, K for background in a model that has one, -1 for ignored pixels. Novel (unseen)
    classes are left out of the training softmax, and pixels with their label are an error.

    Args:
        backbone: config of 'ovd.DPTViT', 'ovd.ResNetPyramid' or any backbone of mmseg.
        neck: config of 'ovd.DPTFusion' or any neck of mmseg, or a list of necks applied in turn.
        head: arguments of ``PixelTextHead``.
        in_index: index of the feature map for the head if there are several.
        pair_with: a word, for LSeg's few-shot protocol: each image is segmented into {0: this word, 1: class
            ``class_id`` of its metainfo}, with ground truth 0, 1 and -1. Training needs ``class_id``; test
            samples without it are scored with the vocabulary.
        loss_size: 'image': interpolate logits to the image; 'features': sample labels at the feature grid.
        background_weight: weight of background pixels in the loss.
        loss_elements: logits held at once in the loss, see ``pixel_cross_entropy``.
        size_divisor: by default that of the backbone.
        **kwargs: of ``OpenVocabularySegmentor``.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        head: Mapping[str, Any],
        neck: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        in_index: int = 0,
        pair_with: str | None = None,
        loss_size: str = 'image',
        background_weight: float = 1.0,
        loss_elements: int = 1 << 26,
        align_corners: bool = True,
        size_divisor: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            align_corners=align_corners, size_divisor=1 if size_divisor is None else size_divisor, **kwargs
        )
        check_option('loss_size', loss_size, LOSS_SIZES)
        self.backbone = MODELS.build(backbone)
        self.neck = _build_neck(neck)
        self.head = PixelTextHead(**head)
        if pair_with is not None and self.with_background:
            raise ValueError(f'pair_with={pair_with!r} cannot be combined with head.with_background=True')
        self.in_index, self.pair_with = in_index, pair_with
        self.loss_size, self.background_weight = loss_size, background_weight
        self.loss_elements = loss_elements
        if size_divisor is None:
            self.size_divisor = getattr(self.backbone, 'size_divisor', 1)
        self._classes: _Classes | None = None
        self._are_labels_checked = False

    @property
    def with_background(self) -> bool:
        """Whether the head has a learned background embedding, channel K."""
        return self.head.background is not None

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        other = None if self.pair_with is None else self._embedding_of(self.pair_with, text_embeddings)
        self._are_labels_checked = False
        self._classes = _Classes.build(text_embeddings, other)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Preprocessed images [B, 3, H, W] -> features [B, C, h, w] for the head."""
        features = self.backbone(inputs)
        if self.neck is not None:
            features = self.neck(features)
        return features if isinstance(features, Tensor) else features[self.in_index]

    def image_context(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Tensor | None:
        """Class embeddings of each image, [B, 2, D], if every sample names its class; else None."""
        if self.pair_with is None or not data_samples:
            return None
        if not all('class_id' in sample.metainfo for sample in data_samples):
            return None
        return self._pairs(data_samples, inputs.device)

    def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        text = self._words(inputs.device).vectors if context is None else context
        return self.head(self.extract_feat(inputs), text)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Cross entropy, mean over the labelled pixels of the batch."""
        height, width = inputs.shape[2:]
        if not self._are_labels_checked:  # reading labels waits for the GPU, so not in every iteration
            self._check_labels(data_samples, (height, width))
            self._are_labels_checked = True
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples]).long()
        if self.pair_with is not None:
            text = self._pairs(data_samples, inputs.device)
        else:
            words = self._words(inputs.device)
            text, labels = words.seen, words.columns[labels]
        padded = pad_to_multiple(inputs, self.size_divisor)
        scores = self.head(self.extract_feat(padded), text)
        if self.loss_size == 'image':
            size = (padded.shape[2], padded.shape[3])
            logits = _at_size(scores, size, (height, width), self.align_corners)
        else:
            labels = pad_to_multiple(labels, self.size_divisor, value=IGNORED)
            labels = nearest(labels, scores.size, self.align_corners)
            logits = _on_grid(scores)
        return {
            'loss_seg': pixel_cross_entropy(
                logits,
                labels,
                scores.channels,
                weight=self._weight(scores),
                ignore_index=IGNORED,
                max_elements=self.loss_elements,
            )
        }

    def _words(self, device: torch.device) -> '_Classes':
        self.prepare_text()
        assert self._classes is not None
        if self._classes.vectors.device != device:
            self._classes = self._classes.to(device)
        return self._classes

    def _embedding_of(self, name: str, text_embeddings: TextEmbeddings) -> Tensor:
        """Embedding [D] of a name, encoded like the classes."""
        names = text_embeddings.vocabulary.names
        if name in names:
            return text_embeddings.embeddings[names.index(name)]
        if self._text_source is None:
            raise ValueError(f'no embedding of pair_with={name!r}: add it to the classes or set `text`')
        return self._source().embed(Vocabulary([name])).embeddings[0]

    def _pairs(self, data_samples: Sequence[SegDataSample], device: torch.device) -> Tensor:
        """Embeddings of (``pair_with``, the class of the image) for each image, [B, 2, D]."""
        words = self._words(device)
        assert words.other is not None
        labels = [sample.metainfo['class_id'] for sample in data_samples]
        if self.training:
            self._check_seen(labels, data_samples[0])
        return torch.stack([torch.stack([words.other, words.vectors[label]]) for label in labels])

    def _check_labels(self, data_samples: Sequence[SegDataSample], size: tuple[int, int]) -> None:
        """Raise ValueError for label maps that do not match inputs of ``size`` or the classes in use.

        Reads the labels, so it is meant for the first iteration. Later, a label of no class or of an unseen
        one is out of range of the cross entropy, which then fails itself, with a less helpful message.
        """
        names = (self.pair_with, 'the class') if self.pair_with is not None else self.vocabulary.names
        names = (*names, 'background') if self.with_background else names
        for sample in data_samples:
            labels = sample.gt_sem_seg.data
            if tuple(labels.shape[1:]) != size:
                raise ValueError(
                    f'{_name(sample)}: label map {tuple(labels.shape[1:])} and input {size} (height, width) '
                    f'differ: transforms of the training pipeline must apply to both'
                )
            found = labels.unique().tolist()
            if found[0] < IGNORED or found[-1] >= len(names):
                wrong = found[0] if found[0] < IGNORED else found[-1]
                raise ValueError(
                    f'{_name(sample)}: label {wrong} is no class, expected 0 ({names[0]!r}) to '
                    f'{len(names) - 1} ({names[-1]!r}) or {IGNORED} (ignored)'
                )
            if self.pair_with is None:
                self._check_seen([label for label in found if 0 <= label < len(self.vocabulary)], sample)

    def _check_seen(self, labels: Sequence[int], sample: SegDataSample) -> None:
        if unseen := [self.vocabulary.names[label] for label in labels if self.vocabulary.is_novel[label]]:
            raise ValueError(
                f'{_name(sample)}: leakage: training labels of unseen {", ".join(map(repr, unseen))}; '
                f"let the data set drop them (unseen_policy='drop')"
            )

    def _weight(self, scores: ScoreMaps) -> Tensor | None:
        if not self.with_background or self.background_weight == 1:
            return None
        weight = torch.ones(scores.channels, device=scores.device)
        weight[-1] = self.background_weight
        return weight


class _Classes(NamedTuple):
    """Embeddings of the classes in use, and the mapping of labels for training.

    Attributes:
        vectors: all classes, [K, D].
        seen: the S seen classes, [S, D].
        columns: for each label its index in ``seen``, [K + 2]; background, label K, is S. Label -1 reads the
            last entry, -1. Unseen classes are -2, which the cross entropy rejects.
        other: ``pair_with``, [D].
    """

    vectors: Tensor
    seen: Tensor
    columns: Tensor
    other: Tensor | None

    @classmethod
    def build(cls, text_embeddings: TextEmbeddings, other: Tensor | None) -> '_Classes':
        vectors, is_novel = text_embeddings.embeddings, torch.tensor(text_embeddings.vocabulary.is_novel)
        columns = (~is_novel).cumsum(0) - 1
        ends = torch.tensor([int(columns[-1]) + 1, IGNORED])
        columns = torch.cat([columns.masked_fill(is_novel, IGNORED - 1), ends])
        return cls(vectors, vectors[~is_novel], columns, other)

    def to(self, device: torch.device) -> '_Classes':
        other = None if self.other is None else self.other.to(device)
        return _Classes(self.vectors.to(device), self.seen.to(device), self.columns.to(device), other)


def _build_neck(neck: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> nn.Module | None:
    if neck is None or isinstance(neck, Mapping):
        return None if neck is None else MODELS.build(neck)
    return nn.Sequential(*(MODELS.build(part) for part in neck))


def _name(sample: SegDataSample) -> str:
    return str(sample.metainfo.get('img_path', 'a training image'))


Strips = Callable[[slice, int, int], Tensor]


def _at_size(
    scores: ScoreMaps, padded: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> Strips:
    """Rows of the scores, interpolated to the padded size and cropped, for ``pixel_cross_entropy``."""

    def strips(images: slice, start: int, stop: int) -> Tensor:
        some = scores.images(images.start, min(images.stop, scores.batch))
        if (start, stop) == (0, size[0]):  # all rows at once: torch's interpolation is faster
            whole = some.rows(0, some.height)
            whole = F.interpolate(whole, size=padded, mode='bilinear', align_corners=align_corners)
            return whole[..., : size[0], : size[1]]
        return CutScores(resized(some, padded, align_corners), size).rows(start, stop)

    return strips


def _on_grid(scores: ScoreMaps) -> Strips:
    """Rows of the scores on their own grid, for ``pixel_cross_entropy``."""

    def strips(images: slice, start: int, stop: int) -> Tensor:
        return scores.images(images.start, min(images.stop, scores.batch)).rows(start, stop)

    return strips


def nearest(labels: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Sample labels [B, H, W] at the points of a coarser grid (h, w), by the nearest pixel."""
    for axis, wanted in ((1, size[0]), (2, size[1])):
        length = labels.shape[axis]
        positions = torch.arange(wanted, device=labels.device, dtype=torch.float64)
        if align_corners:
            positions = positions * ((length - 1) / max(wanted - 1, 1))
        else:
            positions = (positions + 0.5) * (length / wanted) - 0.5
        labels = labels.index_select(axis, positions.round().long().clamp(0, length - 1))
    return labels
