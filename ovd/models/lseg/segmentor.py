"""LSeg: every pixel gets a vector of CLIP's joint space, and words are compared with it.

Source: Li et al., "Language-driven Semantic Segmentation", ICLR 2022; reference: isl-org/lang-seg.
Reading order: LSeg (features, scores, loss), then its helpers. The image nets are in dpt.py, the correlation
and the regularisation blocks in ovd.models.lseg.pixel_text, inference in segmentor.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ...encoders.text_embeddings import TextEmbeddings
from ...layers.score_maps import CutScores, ScoreMaps, resized
from ...registry import MODELS
from ...text.vocabulary import Vocabulary
from ..segmentor import OpenVocabularySegmentor
from .pixel_loss import pixel_cross_entropy
from .pixel_text import PixelTextHead

IGNORED = -1
LOSS_SIZES = ('image', 'features')


@MODELS.register_module()
class LSeg(OpenVocabularySegmentor):
    """Pixel embeddings from any backbone and neck, class scores from words.

    Only the image side is trained; the class vectors are fixed. Training reads ``gt_sem_seg`` of the samples:
    class indices 0 .. K - 1, K for background in a model that has one, -1 for pixels that do not count.
    Classes that the vocabulary calls novel (unseen) take no part in training: their vectors are not in the
    softmax, and a pixel that carries their label is an error.

    Args:
        backbone: config of the image net: 'ovd.DPTViT', 'ovd.ResNetPyramid' or any backbone of mmseg.
        neck: what makes one feature map of its outputs, or a list of such modules applied in turn:
            'ovd.DPTFusion', any neck of mmseg, or nothing.
        head: arguments of ``PixelTextHead``.
        in_index: which map goes to the head where the last module gives several.
        pair_with: makes the zero-shot variant, whose images ask for one class each: scores are {0: this word,
            1: the class}, the class being ``class_id`` in the metainfo of the sample and a ground truth of 0,
            1 and -1. Training needs a ``class_id``; a test sample without one is scored with the vocabulary.
        loss_size: 'image' compares logits interpolated to the size of the image with its labels, 'features'
            compares them where they are, with the label nearest to each.
        background_weight: weight of background pixels in the loss.
        loss_elements: logits that exist at once in the loss, see ``pixel_cross_entropy``.
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
        if loss_size not in LOSS_SIZES:
            raise ValueError(f'loss_size {loss_size!r} is none of {LOSS_SIZES}')
        if not background_weight > 0:
            raise ValueError(f'background_weight must be positive, got {background_weight!r}')
        self.backbone = MODELS.build(backbone)
        self.neck = _build_neck(neck)
        self.head = PixelTextHead(**head)
        if pair_with is not None and self.with_background:
            raise ValueError(f'pair_with={pair_with!r} and a learned background exclude each other')
        self.in_index, self.pair_with = in_index, pair_with
        self.loss_size, self.background_weight = loss_size, background_weight
        self.loss_elements = loss_elements
        if size_divisor is None:
            self.size_divisor = getattr(self.backbone, 'size_divisor', 1)
        self._classes: _Classes | None = None

    @property
    def with_background(self) -> bool:
        """Whether the head has learned a background vector, which is channel K."""
        return self.head.background is not None

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        vocabulary = text_embeddings.vocabulary
        other = None
        if self.pair_with is not None:
            other = self._vector_of(self.pair_with, text_embeddings)
        self._classes = _Classes(text_embeddings.embeddings, torch.tensor(vocabulary.is_novel), other)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Preprocessed images [B, 3, H, W] -> features [B, C, h, w] for the head."""
        features = self.backbone(inputs)
        if self.neck is not None:
            features = self.neck(features)
        if isinstance(features, Tensor):
            return features
        if not -len(features) <= self.in_index < len(features):
            raise ValueError(f'in_index {self.in_index} is none of the {len(features)} maps to choose from')
        return features[self.in_index]

    def image_context(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Tensor | None:
        """Class vectors of each image, [B, 2, D], where the samples ask for one class each."""
        if self.pair_with is None or not data_samples:
            return None
        if not all('class_id' in sample.metainfo for sample in data_samples):
            return None
        return self._pairs(data_samples, inputs.device)

    def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        text = self._words(inputs.device).vectors if context is None else context
        return self.head(self.extract_feat(inputs), text)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Cross entropy of the labelled pixels, mean over all of them in the batch."""
        labels = _stacked_labels(data_samples, (inputs.shape[2], inputs.shape[3]))
        words = self._words(inputs.device)
        if self.pair_with is not None:
            text = self._pairs(data_samples, inputs.device)
            self._check(labels, data_samples, (self.pair_with, 'the class'))
        else:
            names = self.vocabulary.names
            self._check(labels, data_samples, (*names, 'background') if self.with_background else names)
            text, labels = self._seen(words, labels)
        height, width = inputs.shape[2:]
        right, below = -width % self.size_divisor, -height % self.size_divisor
        scores = self.head(self.extract_feat(F.pad(inputs, (0, right, 0, below))), text)
        if self.loss_size == 'image':
            logits = _at_size(scores, (height + below, width + right), (height, width), self.align_corners)
        else:
            padded = F.pad(labels, (0, right, 0, below), value=IGNORED)
            labels = nearest(padded, scores.size, self.align_corners)
            logits = _as_they_are(scores)
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
        self.text_embeddings  # noqa: B018  (made on first use)
        assert self._classes is not None
        if self._classes.vectors.device != device:
            self._classes = self._classes.to(device)
        return self._classes

    def _vector_of(self, name: str, text_embeddings: TextEmbeddings) -> Tensor:
        """The vector of a word outside the classes [D], encoded like them."""
        names = text_embeddings.vocabulary.names
        if name in names:
            return text_embeddings.embeddings[names.index(name)]
        if self._text_source is None:
            raise ValueError(
                f'pair_with={name!r} needs a vector of its own: let the class vectors hold {name!r} as '
                f'well, or give the model `text` to encode it with'
            )
        return self._source().embed(Vocabulary([name])).embeddings[0]

    def _pairs(self, data_samples: Sequence[SegDataSample], device: torch.device) -> Tensor:
        """For each image the vectors of (``pair_with``, its class), [B, 2, D]."""
        words = self._words(device)
        assert words.other is not None
        rows = []
        for sample in data_samples:
            label = sample.metainfo.get('class_id')
            if label is None or not 0 <= label < len(words.vectors):
                raise ValueError(
                    f'{_name(sample)}: class_id {label!r}, expected the index of one of the '
                    f'{len(words.vectors)} classes'
                )
            if self.training and self.vocabulary.is_novel[label]:
                raise ValueError(
                    f'{_name(sample)}: class_id {label} {self.vocabulary.names[label]!r} is an unseen class, '
                    f'which must not be trained'
                )
            rows.append(torch.stack([words.other, words.vectors[label]]))
        return torch.stack(rows)

    def _check(self, labels: Tensor, data_samples: Sequence[SegDataSample], names: Sequence[str]) -> None:
        """Refuse labels that mean no class: they would be learned as another one, or crash far from here."""
        lowest, highest = labels.aminmax()
        if lowest >= IGNORED and highest < len(names):
            return
        wrong = (labels < IGNORED) | (labels >= len(names))
        index = int(wrong.flatten(1).any(1).nonzero()[0])
        found = labels[index][wrong[index]].unique().tolist()
        shown = f'0 {names[0]!r} to {len(names) - 1} {names[-1]!r}'
        raise ValueError(
            f'{_name(data_samples[index])}: label {found[0]} in the ground truth is no class of the model, '
            f'expected {shown} or {IGNORED} for ignored pixels; data set and model must share one vocabulary'
        )

    def _seen(self, words: '_Classes', labels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the seen classes, and the labels as their indices; background stays last."""
        if not any(self.vocabulary.is_novel):
            return words.vectors, labels
        columns = torch.cumsum(~words.is_novel, 0) - 1
        ends = torch.tensor([columns[-1] + 1, IGNORED], device=labels.device)
        columns = torch.cat([torch.where(words.is_novel, IGNORED - 1, columns), ends])
        mapped = columns[labels]  # -1 is the last entry
        if (mapped < IGNORED).any():
            unseen = labels[mapped < IGNORED].unique().tolist()
            names = ', '.join(repr(self.vocabulary.names[label]) for label in unseen)
            raise ValueError(
                f'training pixels of unseen classes {names}: they would leak into training; let the data set '
                f"ignore them (unseen='ignore')"
            )
        return words.vectors[~words.is_novel], mapped

    def _weight(self, scores: ScoreMaps) -> Tensor | None:
        if not self.with_background or self.background_weight == 1:
            return None
        weight = torch.ones(scores.channels, device=scores.device)
        weight[-1] = self.background_weight
        return weight


class _Classes(NamedTuple):
    """Class vectors in use: [K, D], whether each is unseen [K], and the vector of ``pair_with`` [D]."""

    vectors: Tensor
    is_novel: Tensor
    other: Tensor | None

    def to(self, device: torch.device) -> '_Classes':
        other = None if self.other is None else self.other.to(device)
        return _Classes(self.vectors.to(device), self.is_novel.to(device), other)


def _build_neck(neck: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> nn.Module | None:
    if neck is None or isinstance(neck, Mapping):
        return None if neck is None else MODELS.build(neck)
    return nn.Sequential(*(MODELS.build(part) for part in neck))


def _stacked_labels(data_samples: Sequence[SegDataSample], size: tuple[int, int]) -> Tensor:
    """Labels of the samples, int64 [B, H, W], which must have the size (H, W) of the inputs."""
    for sample in data_samples:
        if 'gt_sem_seg' not in sample:
            raise ValueError(
                f"{_name(sample)} comes without labels: training needs 'ovd.LoadSegmentation' in the pipeline"
            )
        found = tuple(sample.gt_sem_seg.data.shape[1:])
        if found != size:
            raise ValueError(
                f'{_name(sample)}: labels of {found} came with inputs of {size} (height, width): the '
                f'steps of the training pipeline must move both'
            )
    return torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples]).long()


def _name(sample: SegDataSample) -> str:
    return str(sample.metainfo.get('img_path', 'a training image'))


Strips = Callable[[slice, int, int], Tensor]


def _at_size(
    scores: ScoreMaps, padded: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> Strips:
    """Rows of the scores interpolated to the padded size and cut, for ``pixel_cross_entropy``."""

    def strips(images: slice, start: int, stop: int) -> Tensor:
        some = scores.images(images.start, min(images.stop, scores.batch))
        if (start, stop) == (0, size[0]):  # all rows at once: torch's interpolation is the faster one
            whole = some.rows(0, some.height)
            whole = F.interpolate(whole, size=padded, mode='bilinear', align_corners=align_corners)
            return whole[..., : size[0], : size[1]]
        return CutScores(resized(some, padded, align_corners), size).rows(start, stop)

    return strips


def _as_they_are(scores: ScoreMaps) -> Strips:
    def strips(images: slice, start: int, stop: int) -> Tensor:
        return scores.images(images.start, min(images.stop, scores.batch)).rows(start, stop)

    return strips


def nearest(labels: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Labels [B, H, W] at the places of a coarser grid (h, w), the nearest pixel of each."""
    for axis, wanted in ((1, size[0]), (2, size[1])):
        length = labels.shape[axis]
        places = torch.arange(wanted, device=labels.device, dtype=torch.float64)
        if align_corners:
            places = places * ((length - 1) / max(wanted - 1, 1))
        else:
            places = (places + 0.5) * (length / wanted) - 0.5
        labels = labels.index_select(axis, places.round().long().clamp(0, length - 1))
    return labels
