"""ClipSegmentor: an image tower and words, nothing trained. Every pixel gets its nearest word.

Reading order: ClipSegmentor, TextBackground. The image side is in ovd.encoders.dense.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...encoders.dense.tower import build_dense_tower
from ...encoders.text_embeddings import TextEmbeddings
from ...encoders.text_encoder import check_same_encoder
from ...encoders.text_source import text_half
from ...layers.cosine_scores import CosineScores, background_scores
from ...layers.score_maps import ScoreMaps
from ...registry import MODELS
from ...text.vocabulary import Vocabulary
from ..segmentor import OpenVocabularySegmentor
from .unasked_words import words_without


@MODELS.register_module()
class ClipSegmentor(OpenVocabularySegmentor):
    """Dense features of an image-text model against words.

    The model has no weights besides those of the towers, which the configuration names; there is nothing to
    train and no checkpoint to load.

    Args:
        tower: arguments of ``build_dense_tower``: which CLIP, which attention in its last block, windows.
        temperature: divides the cosines; matters to the background threshold and to sums over windows not at
            all, to scores that are shown.
        background: what makes background a class of its own: ``threshold``, a probability that the best word
            must reach, ``names``, words that compete with the vocabulary, or both; None gives every pixel a
            word.
        text: arguments of ``TextSource``; its encoder is by default the text half of the tower.
        data_preprocessor: by default the pixel statistics of the tower, for images in BGR order.
        test_cfg: see ``OpenVocabularySegmentor``; ``max_elements`` is 2^18 here, the fastest on a CPU.
        **kwargs: of ``OpenVocabularySegmentor``.
    """

    def __init__(
        self,
        tower: Mapping[str, Any],
        temperature: float = 0.01,
        background: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        size_divisor: int | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f'temperature must be positive, got {temperature!r}')
        dense = build_dense_tower(tower)
        if data_preprocessor is None:
            data_preprocessor = {
                'type': 'mmseg.SegDataPreProcessor',
                'mean': [255 * value for value in dense.mean],
                'std': [255 * value for value in dense.std],
                'bgr_to_rgb': True,
            }
        if text is not None and not {'encoder', 'embeddings'} & set(text):
            text = {**text, 'encoder': text_half(tower)}
        test_cfg = {'max_elements': 1 << 18, **(test_cfg or {})}
        divisor = dense.stride if size_divisor is None else size_divisor
        super().__init__(
            text=text, data_preprocessor=data_preprocessor, size_divisor=divisor, test_cfg=test_cfg, **kwargs
        )
        self.tower = dense
        self.scale = 1 / temperature
        self.background = None if background is None else TextBackground(**background)
        self.register_buffer('class_embeddings', None, persistent=False)
        self.register_buffer('rivals', None, persistent=False)
        self.class_embeddings: Tensor | None
        self.rivals: Tensor | None

    needs_checkpoint = False

    @property
    def with_background(self) -> bool:
        return self.background is not None

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        if text_embeddings.embed_dim != self.tower.embed_dim:
            raise ValueError(
                f'class vectors of width {text_embeddings.embed_dim} do not fit the image tower of width '
                f'{self.tower.embed_dim}: they come from another image-text model'
            )
        check_same_encoder(text_embeddings.encoder_fingerprint, self.tower.fingerprint, 'the class vectors')
        device = next(self.tower.parameters()).device
        self.class_embeddings = text_embeddings.embeddings.to(device)
        self.rivals = None
        names = None if self.background is None else self.background.rivals_of(text_embeddings.vocabulary)
        if names is not None:
            source = self._text_source
            if source is None:
                raise ValueError(f'background words such as {names.names[0]!r} need `text` with an encoder')
            self.rivals = source.embed(names).embeddings.to(device)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> pixel_embeddings [B, D, h, w]."""
        return self.tower(inputs)

    def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        pixels = self.extract_feat(inputs)
        assert self.class_embeddings is not None
        background = None
        if self.background is not None:
            background = background_scores(
                pixels, self.class_embeddings, self.scale, self.background.threshold, self.rivals
            )
        return CosineScores(pixels, self.class_embeddings, self.scale, background)

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Tensor]:
        raise ValueError('ClipSegmentor is not trained: test it, or train the CLIP that it is made of')

    def describe(self) -> dict[str, Any]:
        """The words, the tower and the rule for background."""
        background = None if self.background is None else self.background.describe()
        return {**super().describe(), 'temperature': 1 / self.scale, 'background': background}


class TextBackground:
    """When a pixel is background.

    Args:
        threshold: the probability that the best word must reach, in (0, 1).
        names: words for background in any spelling of ``Vocabulary.parse``; those that the vocabulary in use
            has are left out.
    """

    def __init__(self, threshold: float | None = None, names: Any = None) -> None:
        if threshold is None and names is None:
            raise ValueError('background needs a threshold, names of what is background, or both')
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f'background.threshold must lie between 0 and 1, got {threshold!r}')
        self.threshold = threshold
        self.names = None if names is None else Vocabulary.parse(names)

    def rivals_of(self, vocabulary: Vocabulary) -> Vocabulary | None:
        """The background words that the vocabulary does not have; None where there are none."""
        return None if self.names is None else words_without(self.names, vocabulary)

    def describe(self) -> dict[str, Any]:
        return {'threshold': self.threshold, 'names': None if self.names is None else list(self.names)}
