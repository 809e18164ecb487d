"""A segmentor small enough to predict by hand: it compares the colour of a pixel with colours of words."""

from pathlib import Path
from typing import Any

import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.layers.score_maps import ScoreMaps, TensorScores
from ovd.models.segmentor import OpenVocabularySegmentor
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary

COLORS = {'red': (1, 0, 0), 'green': (0, 1, 0), 'blue': (0, 0, 1)}

CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='ovd.ToySegmentor', words=['red', 'green', 'blue'],
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, seg_pad_val=-1))
test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=[
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(64, 48), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]))
"""


class WordColors:
    """In the place of a text source: 'red car' has the vector of red, other words have random ones."""

    def __init__(self, words: Any) -> None:
        self.vocabulary = Vocabulary.parse(words)

    def embed(self, vocabulary: Vocabulary, templates: Any = None) -> TextEmbeddings:
        rows = []
        for name in vocabulary.names:
            seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(name))
            random = torch.rand(3, generator=torch.Generator().manual_seed(seed)) - 0.5
            color = COLORS.get(name.split()[0])
            rows.append(F.normalize(random if color is None else torch.tensor(color).float(), dim=0))
        return TextEmbeddings(torch.stack(rows), vocabulary, ('{}',), 'toy')


@MODELS.register_module()
class ToySegmentor(OpenVocabularySegmentor):
    """Score of a word: its colour times the mean colour of ``stride`` x ``stride`` pixels, times the weight.

    Args:
        words: the vocabulary of the configuration.
        stride: of the grid of scores.
        background: score of the background channel; None leaves it out.
        field: side of the square of pixels around each that its score depends on; 1 sees windows alike.
    """

    def __init__(
        self,
        words: Any = 'red, green',
        stride: int = 1,
        background: float | None = None,
        field: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(size_divisor=kwargs.pop('size_divisor', stride), **kwargs)
        self._text_source = WordColors(words)  # type: ignore[assignment]
        self.weight = nn.Parameter(torch.ones(()))
        self.stride, self.background, self.field = stride, background, field
        self.forwards: list[tuple[int, ...]] = []

    @property
    def with_background(self) -> bool:
        return self.background is not None

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        self.words = text_embeddings.embeddings

    def extract_feat(self, inputs: Tensor) -> Tensor:
        self.forwards.append(tuple(inputs.shape))
        if self.field > 1:
            inputs = F.avg_pool2d(inputs, self.field, 1, self.field // 2)
        return F.avg_pool2d(inputs, self.stride) * self.weight

    def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        scores = torch.einsum('bchw,kc->bkhw', self.extract_feat(inputs), self.words)
        if self.background is not None:
            scores = torch.cat([scores, torch.full_like(scores[:, :1], self.background)], 1)
        return TensorScores(scores)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        raise NotImplementedError


def write_toy_segmentor(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """The toy's config, with further arguments of the model, and a checkpoint with weight 1."""
    config, checkpoint = folder / 'toy_segmentor.py', folder / 'toy_segmentor.pth'
    config.write_text(CONFIG + f'model.update({changes!r})\n')
    torch.save({'state_dict': {'weight': torch.ones(())}}, checkpoint)
    return config, checkpoint
