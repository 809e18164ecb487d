"""A CLIP looks at the crops of candidate boxes and names them among the asked words and their rivals.

ViLD's own ensemble with CLIP on cropped regions (Gu et al., ICLR 2022, Sec. 3.2) scores all proposals; here
only the few boxes that could be shown are scored, so any detector can be verified.
"""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders.image_encoder import ImageEncoder
from ..encoders.loading import load_clip
from ..encoders.sources import resolve_built_in
from ..encoders.text_embeddings import TextEmbeddings
from ..encoders.text_encoder import TextEncoder
from ..regions.crops import CropPolicy, crop_regions, join_scales
from ..text.vocabulary import Vocabulary
from .answering import AnswerOptions, box_ious
from .predictions import Prediction

_KEPT = 16  # vocabularies whose vectors stay in memory


def has_image_tower(folder: str) -> bool:
    """Whether a path is the folder of a CLIP, of open_clip or of transformers; a BERT has no image tower."""
    if not folder:
        return False
    if (Path(folder) / 'open_clip_config.json').is_file():
        return True
    path = Path(folder) / 'config.json'
    return path.is_file() and json.loads(path.read_text(encoding='utf-8')).get('model_type') in (
        'clip',
        'siglip',
    )


class CropVerifier:
    """Scores boxes with a CLIP, as region caching crops them (1x and 1.5x).

    Args:
        model: see ``load_clip``.
        device: where both towers run.
        templates: prompts of the words.
        candidates: best objects of an image that are looked at.
    """

    def __init__(
        self, model: str, device: str = 'cpu', templates: str = 'single', candidates: int = 20
    ) -> None:
        self.model = resolve_built_in(model)
        self._images = ImageEncoder(self.model).to(device)
        self._texts: TextEncoder | None = None
        self._scale = float(load_clip(self.model).model.get_parameter('logit_scale').exp())
        self._policy = CropPolicy()
        self._templates = templates
        self._candidates = candidates
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()

    def rescore(
        self, found: Prediction, picture: np.ndarray, words: Vocabulary, options: AnswerOptions
    ) -> Prediction:
        """Multiply scores with the CLIP's probabilities of their names.

        Args:
            found: what the model found, several names per object.
            picture: RGB, uint8 [H, W, 3].
            words: the asked words, then the rivals; the index of a word is its label.
            options: ``overlap`` tells objects apart, ``verifier_weight`` is the exponent w.
        Returns:
            one row for each of the best objects and each word: objectness ** (1 - w) * probability ** w,
            where objectness is the best score of the object. Boxes are those of the best row.
        """
        objects = self._objects(found, options)
        if not len(objects):
            return found
        probs = self.probabilities(picture, found.boxes[objects], words).cpu().numpy()
        count, weight = len(words), options.verifier_weight
        scores = found.scores[objects, None] ** (1 - weight) * probs**weight
        labels = np.tile(np.arange(count), len(objects))
        rows = np.repeat(objects, count)
        rescored = replace(
            found,
            boxes=found.boxes[rows],
            scores=scores.astype(np.float32).ravel(),
            labels=labels,
            names=tuple(words.labels[label] for label in labels),
            masks=None if found.masks is None else found.masks[rows],
        )
        return rescored.keep(np.flatnonzero(rescored.scores >= 0.01))

    @torch.no_grad()
    def probabilities(self, picture: np.ndarray, boxes: np.ndarray, words: Vocabulary) -> Tensor:
        """Softmax over the words of each box [N, 4], xyxy in pixels: [N, K]."""
        device = self._images.mean_pixel.device
        image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).to(device)
        crops = crop_regions(image, torch.from_numpy(boxes).to(device), self._images.image_size, self._policy)
        features = self._images.encode(self._images.normalize(crops))
        regions = join_scales(features, len(self._policy.scales))
        return (self._scale * regions @ self._embed(words).to(device).T).softmax(dim=-1)

    def _objects(self, found: Prediction, options: AnswerOptions) -> np.ndarray:
        """Indices of the best row of each of the best objects, of those that could still be shown."""
        overlaps = box_ious(found.boxes)
        kept: list[int] = []
        for index in np.argsort(-found.scores, kind='stable'):
            if found.scores[index] ** (1 - options.verifier_weight) < options.floor:
                break
            if all(overlaps[one, index] < options.overlap for one in kept):
                kept.append(int(index))
            if len(kept) == self._candidates:
                break
        return np.array(kept, dtype=np.int64)

    def _embed(self, words: Vocabulary) -> Tensor:
        key = words.content_hash
        if key not in self._vectors:
            if self._texts is None:
                self._texts = TextEncoder(self.model)
            self._vectors[key] = TextEmbeddings.build(words, self._templates, self._texts).embeddings
            while len(self._vectors) > _KEPT:
                self._vectors.popitem(last=False)
        return self._vectors[key]
