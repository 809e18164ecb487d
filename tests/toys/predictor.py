"""A detector small enough to predict by hand, for the tests of the predictor and the demo."""

from dataclasses import dataclass
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ovd.models.base import OpenVocabularyModel
from ovd.registry import MODELS
from ovd.text.templates import Templates
from ovd.text.vocabulary import Vocabulary

CONFIG = """
default_scope = 'mmdet'
model = dict(
    type='ovd.ToyDetector',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True))
test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(64, 48), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""


@dataclass
class Words:
    """A vocabulary that needs no encoding."""

    vocabulary: Vocabulary


@MODELS.register_module()
class ToyDetector(OpenVocabularyModel):
    """Finds every word of its vocabulary; boxes and masks are the whole image, scores its mean colour.

    The score of a word beginning with 'red' is the mean of the red channel in [0, 1] times a weight that the
    checkpoint brings; words beginning with anything but red, green and blue score 0.05.
    """

    answers = 'boxes'

    def __init__(self, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.set_vocabulary(['red', 'green'])
        self.weight = nn.Parameter(torch.zeros(()))
        self.batch_sizes: list[int] = []

    def encode_vocabulary(self, vocabulary: Vocabulary, templates: 'Templates | None' = None) -> Words:
        return Words(vocabulary)

    def use_text_embeddings(self, text_embeddings: Words) -> None:
        pass

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample], mode: str) -> list[DetDataSample]:
        self.batch_sizes.append(len(inputs))
        colors = ['red', 'green', 'blue']
        for pixels, sample in zip(inputs, data_samples):
            means = pixels.mean(dim=(1, 2)) * self.weight
            count, (height, width) = len(self.vocabulary), sample.ori_shape
            words = [name.split()[0] for name in self.vocabulary.names]
            scores = [means[colors.index(w)] if w in colors else torch.tensor(0.05) for w in words]
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([[0.0, 0.0, width, height]]).expand(count, 4),
                scores=torch.stack(scores),
                labels=torch.arange(count),
                masks=torch.ones(count, height, width, dtype=torch.bool),
            )
        return data_samples


def write_toy(folder: Path) -> tuple[Path, Path]:
    """The toy's config and a checkpoint with weight 1."""
    config, checkpoint = folder / 'toy.py', folder / 'toy.pth'
    config.write_text(CONFIG)
    torch.save({'state_dict': {'weight': torch.ones(())}}, checkpoint)
    return config, checkpoint
