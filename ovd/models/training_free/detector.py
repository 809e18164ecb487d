"""ClipDetector: boxes of anything, named by an image tower that has seen no box. Nothing is trained.

Class-agnostic proposals are cropped, the crops are compared with words, and the class probability is joined
with the objectness of the proposal.

Source: the baseline "CLIP on cropped regions" of ViLD, Gu et al., ICLR 2022, Sec. 3.2 and Table 1.
Reading order: ClipDetector, RegionSource (boxes, and embeddings where a store has them), name_regions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from ...encoders.text_embeddings import TextEmbeddings
from ...encoders.text_encoder import check_same_encoder
from ...encoders.text_source import text_half
from ...regions.embedding import RegionEmbedder
from ...regions.store import RegionStore
from ...registry import MODELS
from ...text.vocabulary import Vocabulary
from ..base import OpenVocabularyModel
from .regions import Regions, RegionSource
from .unasked_words import words_without


@MODELS.register_module()
class ClipDetector(OpenVocabularyModel, BaseDetector):
    """Proposals, crops, words; boxes and masks are those of the proposals.

    The model has no weights besides those of the towers, which the configuration names.

    Args:
        tower: arguments of ``open_image_tower``: a CLIP, or ``dict(kind='labels')`` for a classifier and a
            sentence encoder. Also the text encoder, where ``text`` names none.
        text: arguments of ``TextSource``.
        proposals: arguments of ``RegionSource``; None if the data samples bring ``proposals``.
        crops: arguments of ``CropPolicy``.
        temperature: divides the cosines of crops and words before the softmax over the words.
        contrast: words that nobody asks for, in any spelling of ``Vocabulary.parse``; they take part in the
            softmax, so a region that looks like one of them is no instance of a word. Those that are in the
            vocabulary in use are left out.
        objectness_weight: w of the score objectness^w * probability^(1 - w), a geometric mean; 0 leaves
            objectness out.
        store: folder of a region store of the same tower and crops; its images are answered without running
            the tower, with the boxes that it holds.
        batch_size: crops per forward; affects memory only.
        test_cfg: ``score_threshold``, ``nms`` (IoU above which the lower-scored of two boxes of one class is
            dropped, None keeps all) and ``max_per_image``.
    """

    answers = 'boxes'
    needs_checkpoint = False

    def __init__(
        self,
        tower: Mapping[str, Any],
        text: Mapping[str, Any] | None = None,
        proposals: Mapping[str, Any] | None = None,
        crops: Mapping[str, Any] | None = None,
        temperature: float = 0.01,
        contrast: Any = None,
        objectness_weight: float = 0.5,
        store: str | None = None,
        batch_size: int = 256,
        test_cfg: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f'temperature must be positive, got {temperature!r}')
        if not 0 <= objectness_weight < 1:
            raise ValueError(f'objectness_weight must lie in [0, 1), got {objectness_weight!r}')
        if text is not None and not {'encoder', 'embeddings'} & set(text):
            text = {**text, 'encoder': text_half(tower)}
        if data_preprocessor is None:
            data_preprocessor = {'type': 'mmdet.DetDataPreprocessor', 'bgr_to_rgb': True}
        super().__init__(text=text, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.embedder = RegionEmbedder(tower, crops, batch_size)
        self.temperature, self.objectness_weight = temperature, objectness_weight
        self.contrast = None if contrast is None else Vocabulary.parse(contrast)
        self.source = RegionSource(**(proposals or {}), needs_scores=objectness_weight > 0)
        self.store = None if store is None else RegionStore(store)
        if self.store is not None:
            self.store.check(crops_hash=self.embedder.policy.hash)
        self.rules = SelectionRules(**(test_cfg or {}))
        self.train_cfg = train_cfg
        self.class_embeddings: Tensor | None = None
        self.contrast_embeddings: Tensor | None = None

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        made_by = text_embeddings.encoder_fingerprint
        if self.store is not None:
            check_same_encoder(made_by, self.store.header['clip_fingerprint'], 'the class vectors')
        else:
            check_same_encoder(made_by, self.embedder.tower.fingerprint, 'the class vectors')
        self.class_embeddings = text_embeddings.embeddings
        self.contrast_embeddings = None
        rivals = None if self.contrast is None else words_without(self.contrast, text_embeddings.vocabulary)
        if rivals is not None:
            self.contrast_embeddings = self._source().embed(rivals).embeddings

    def extract_feat(self, batch_inputs: Tensor) -> Tensor:
        """There are no features of whole images."""
        raise ValueError('ClipDetector looks at crops, it has no features of whole images')

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        raise ValueError('ClipDetector is not trained: test it, or distil it into ViLD')

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        return self.predict(batch_inputs, batch_data_samples)

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Detections of a batch.

        Args:
            batch_inputs: RGB, 0 .. 255, [B, 3, H, W], padded on the right and below.
            batch_data_samples: B samples with ``img_id``, ``img_shape`` and, of resized images,
                ``scale_factor``.
            rescale: put boxes into the frame of the original images.
        Raises:
            ValueError: proposals of other images or of another size; see ``RegionSource``.
        """
        self.prepare_text()
        images = [
            image[:, : sample.img_shape[0], : sample.img_shape[1]].round().clamp(0, 255).to(torch.uint8)
            for image, sample in zip(batch_inputs, batch_data_samples)
        ]
        regions = [self._regions(image, sample) for image, sample in zip(images, batch_data_samples)]
        missing = [index for index, found in enumerate(regions) if found.embeddings is None]
        if missing:
            embedded = self.embedder.embed(
                [images[index] for index in missing], [regions[index].input_boxes for index in missing]
            )
            for index, vectors in zip(missing, embedded):
                regions[index] = regions[index]._replace(embeddings=vectors)
        for found, sample in zip(regions, batch_data_samples):
            sample.pred_instances = self._name(found, rescale)
        return batch_data_samples

    def describe(self) -> dict[str, Any]:
        """The words, the crops, the proposals, and the rules that make scores."""
        return {
            **super().describe(),
            'crops': self.embedder.policy.to_dict(),
            'proposals': self.source.describe(),
            'temperature': self.temperature,
            'contrast_words': 0 if self.contrast is None else len(self.contrast),
            'objectness_weight': self.objectness_weight,
            **self.rules._asdict(),
        }

    def _regions(self, image: Tensor, sample: DetDataSample) -> Regions:
        """Boxes of an image, and their embeddings where the store has them."""
        image_id = sample.metainfo.get('img_id')
        factor = torch.tensor(sample.metainfo.get('scale_factor', (1.0, 1.0))).repeat(2)
        if self.store is not None and image_id in self.store:
            rows = self.store.read(image_id)
            boxes = torch.from_numpy(rows.boxes.copy())
            return Regions(
                boxes=boxes,
                scores=torch.from_numpy(rows.scores.copy()),
                input_boxes=boxes * factor,
                embeddings=torch.from_numpy(rows.embeddings.copy()).float(),
            )
        return self.source(image, sample, factor)

    def _name(self, regions: Regions, rescale: bool) -> InstanceData:
        """Give each region its words."""
        assert self.class_embeddings is not None
        assert regions.embeddings is not None
        probs = class_probs(
            regions.embeddings.cpu(), self.class_embeddings, self.temperature, self.contrast_embeddings
        )
        weight = self.objectness_weight
        objectness = regions.scores.float().clamp(0, 1)[:, None]
        scores = probs if weight == 0 else objectness**weight * probs ** (1 - weight)
        rows, labels = self.rules.select(regions.boxes, scores)
        boxes = regions.boxes if rescale else regions.input_boxes
        found = InstanceData(bboxes=boxes[rows].float(), scores=scores[rows, labels], labels=labels)
        if regions.masks is not None:
            found.masks = regions.masks(rows)
        return found


class SelectionRules(NamedTuple):
    """Which boxes are kept; see ``test_cfg`` of ``ClipDetector``.

    Attributes:
        max_candidates: pairs of box and class that are compared with each other at most, the best ones.
    """

    score_threshold: float = 0.0
    nms: float | None = 0.5
    max_per_image: int = 100
    max_candidates: int = 20000

    def select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, 4] and scores [N, K] -> rows and labels of the detections, best first."""
        pairs = (scores > self.score_threshold).nonzero()
        values = scores[pairs[:, 0], pairs[:, 1]]
        order = values.argsort(descending=True, stable=True)[: self.max_candidates]
        rows, labels = pairs[order].unbind(1)
        if self.nms is not None:
            rank = torch.arange(len(rows), 0, -1, dtype=torch.float32)
            kept = batched_nms(boxes[rows].float(), rank, labels, self.nms)
            rows, labels = rows[kept], labels[kept]
        return rows[: self.max_per_image], labels[: self.max_per_image]


def class_probs(
    embeddings: Tensor, class_embeddings: Tensor, temperature: float, contrast: Tensor | None = None
) -> Tensor:
    """Probabilities of K classes for each region, [N, K].

    Args:
        embeddings: [N, D].
        class_embeddings: [K, D], unit length.
        temperature: divides the cosines.
        contrast: [S, D] of words that take part in the softmax and in nothing else.
    """
    words = class_embeddings if contrast is None else torch.cat([class_embeddings, contrast])
    logits = F.normalize(embeddings, dim=-1) @ words.T / temperature
    return logits.softmax(-1)[:, : len(class_embeddings)]
