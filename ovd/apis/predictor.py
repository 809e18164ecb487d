"""Ask a trained model: words in, boxes (and masks) with the user's own names out.

Preprocessing is the config's test pipeline and post-processing is the model's own, so the numbers are those
of ``tools/test.py``. Reading order: ``Prediction`` (what was found on one image), ``Predictor``, helpers.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from ovd.apis.draw import RGB, draw_instances, name_colors
from ovd.checkpoint import load_into, load_tensors
from ovd.config import load_config
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary

ImageSource = str | os.PathLike[str] | np.ndarray | Image.Image

# Transforms that read annotations; a question has none.
_ANNOTATION_LOADERS = ('LoadAnnotations', 'LoadRegionEmbeddings')


@dataclass(frozen=True)
class Prediction:
    """What was found on one image, best score first.

    Attributes:
        boxes: [N, 4] float32, xyxy in pixels of the original image.
        scores: [N] float32.
        labels: [N] int64, the place of each name in the vocabulary.
        names: N of the user's own words.
        masks: bool [N, H, W], or None when the model has no mask head.
        size: (H, W) of the original image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    masks: np.ndarray | None
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, score_threshold: float = 0.0, max_per_image: int | None = None) -> 'Prediction':
        """Keep the best ``max_per_image`` of the instances with at least ``score_threshold``."""
        keep = np.argsort(-self.scores, kind='stable')
        keep = keep[self.scores[keep] >= score_threshold][:max_per_image]
        return Prediction(
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            names=tuple(self.names[index] for index in keep),
            masks=None if self.masks is None else self.masks[keep],
            size=self.size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; masks as COCO run lengths, which pycocotools decodes."""
        instances = [
            {'name': name, 'label': int(label), 'score': float(score), 'box': [float(value) for value in box]}
            for name, label, score, box in zip(self.names, self.labels, self.scores, self.boxes)
        ]
        if self.masks is not None:
            for instance, mask in zip(instances, self.masks):
                instance['mask'] = _run_lengths(mask)
        return {'height': self.size[0], 'width': self.size[1], 'instances': instances}

    def draw(
        self,
        image: np.ndarray,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> np.ndarray:
        """Draw the instances on their image (uint8 [H, W, 3], RGB); see ``draw_instances``."""
        if image.shape[:2] != self.size:
            raise ValueError(f'this prediction is for an image of {self.size}, got one of {image.shape[:2]}')
        return draw_instances(image, self.boxes, self.names, self.scores, self.masks, colors, font=font)


class Predictor:
    """A model with weights, ready for words and images.

    ::

        predictor = Predictor('configs/vild_shapes.py', 'work_dirs/vild_shapes/latest.pth')
        predictor.set_vocabulary('red star, heart, ring')
        for prediction in predictor.predict(['one.png', 'two.png']):
            print(prediction.names, prediction.boxes)

    Args:
        config: path of a config, or a loaded one; its ``test_dataloader`` gives the test pipeline.
        checkpoint: weights of that model: safetensors, or a torch file, which is read weights-only.
        device: for example ``'cpu'`` or ``'cuda:1'``; by default the GPU if there is one.
    Raises:
        FileNotFoundError: config or checkpoint is absent.
        ValueError: a checkpoint of another model, an unknown device, or a model that takes no vocabulary.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Config,
        checkpoint: str | os.PathLike[str],
        device: str | torch.device | None = None,
    ) -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self.device = _device(device)
        with DefaultScope.overwrite_default_scope(self.config.get('default_scope', 'mmdet')):
            self.model: Any = _build_model(self.config, checkpoint).to(self.device).eval()
            self._from_path, self._from_array = _test_pipelines(self.config)

    @property
    def vocabulary(self) -> Vocabulary:
        """The words asked for; those of the config until ``set_vocabulary`` is called."""
        vocabulary: Vocabulary = self.model.vocabulary
        return vocabulary

    def set_vocabulary(self, words: Any, templates: Any = None) -> 'Predictor':
        """Ask for other words from now on; words asked for before cost no encoding.

        Args:
            words: anything ``Vocabulary.parse`` reads, a ``Vocabulary``, or ``TextEmbeddings``.
            templates: prompt templates, by default those of the config.
        Returns:
            the predictor itself.
        """
        self.model.set_vocabulary(words, templates)
        return self

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        batch_size: int = 1,
        score_threshold: float = 0.0,
        max_per_image: int | None = None,
    ) -> list[Prediction]:
        """Find the words of the vocabulary on images.

        Args:
            images: one or many of: a path, an RGB array (uint8 [H, W, 3]), a PIL image.
            batch_size: images per forward at most. Only images of equal input size share a batch, so the
                result on an image does not depend on its neighbours.
            score_threshold: instances below are left out, beyond those that the config's ``test_cfg`` drops.
            max_per_image: the best so many are kept, of those that the config's ``test_cfg`` keeps.
        Returns:
            one prediction for each image, in the order of ``images``.
        Raises:
            FileNotFoundError, ValueError: an image is absent or cannot be read; the message names it.
        """
        sources = (
            [images] if isinstance(images, (str, os.PathLike, np.ndarray, Image.Image)) else list(images)
        )
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}')
        found = self._stream(sources, batch_size)
        return [prediction.select(score_threshold, max_per_image) for prediction in found]

    def _stream(self, sources: list[ImageSource], batch_size: int) -> Iterator[Prediction]:
        """Predictions in order, ``batch_size`` images in memory at a time."""
        for start in range(0, len(sources), batch_size):
            window = sources[start : start + batch_size]
            inputs = [self._load(source, start + index) for index, source in enumerate(window)]
            found: list[Prediction | None] = [None] * len(inputs)
            for group in _equal_shapes(inputs):
                batch = {key: [inputs[index][key] for index in group] for key in ('inputs', 'data_samples')}
                with torch.no_grad():
                    samples = self.model.test_step(batch)
                for index, sample in zip(group, samples):
                    found[index] = self._prediction(sample)
            yield from (prediction for prediction in found if prediction is not None)

    def _load(self, source: ImageSource, index: int) -> dict[str, Any]:
        """Run the test pipeline on the image at place ``index`` of the question."""
        if isinstance(source, (str, os.PathLike)):
            loaded = self._from_path({'img_path': os.fspath(source), 'img_id': index})
        else:
            pixels = np.asarray(source.convert('RGB')) if isinstance(source, Image.Image) else source
            loaded = self._from_array({'img': _bgr(pixels, index), 'img_id': index})
        data: dict[str, Any] = loaded
        return data

    def _prediction(self, sample: Any) -> Prediction:
        """Move a data sample's instances to numpy and give them their names."""
        instances = sample.pred_instances.cpu().numpy()
        labels = instances.labels.astype(np.int64)
        shown = self.vocabulary.labels
        masks = instances.masks.astype(bool) if 'masks' in instances else None
        return Prediction(
            boxes=instances.bboxes.astype(np.float32).reshape(-1, 4),
            scores=instances.scores.astype(np.float32),
            labels=labels,
            names=tuple(shown[label] for label in labels),
            masks=masks,
            size=tuple(sample.ori_shape),
        )

    def colors(self) -> dict[str, RGB]:
        """A colour for each name of the vocabulary, equal on every picture."""
        return name_colors(self.vocabulary.labels)


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, by default the first GPU, else the CPU."""
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: expected 'cpu', 'cuda' or 'cuda:0'") from None
    if chosen.type == 'cuda' and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device {device!r} is not here: torch sees {torch.cuda.device_count()} GPUs')
    return chosen


def _build_model(config: Config, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """The config's model with the checkpoint's weights, on the CPU."""
    tensors = load_tensors(checkpoint)
    section = copy.deepcopy(config.model)
    if 'data_preprocessor' in config:
        section.setdefault('data_preprocessor', config.data_preprocessor)
    model: nn.Module = MODELS.build(section)
    if not hasattr(model, 'set_vocabulary'):
        raise ValueError(f'{type(model).__name__} takes no vocabulary: its classes are fixed in its weights')
    load_into(model, tensors, source=checkpoint)
    return model


def _test_pipelines(config: Config) -> tuple[Compose, Compose]:
    """The config's test pipeline without annotations: for a path, and for a BGR array under ``img``."""
    from mmdet.utils import get_test_pipeline_cfg

    steps = [
        step
        for step in get_test_pipeline_cfg(config)
        if step['type'].rpartition('.')[2] not in _ANNOTATION_LOADERS
    ]
    if not steps or not steps[0]['type'].rpartition('.')[2].startswith('LoadImage'):
        first = steps[0]['type'] if steps else 'nothing'
        raise ValueError(f'the test pipeline must begin with loading the image, it begins with {first}')
    loader = {'type': 'mmdet.LoadImageFromNDArray', 'to_float32': steps[0].get('to_float32', False)}
    return Compose(steps), Compose([loader, *steps[1:]])


def _equal_shapes(inputs: list[dict[str, Any]]) -> list[list[int]]:
    """Indices of the inputs, grouped by the shape of their image tensor."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(inputs):
        groups.setdefault(tuple(item['inputs'].shape), []).append(index)
    return list(groups.values())


def _bgr(pixels: Any, index: int) -> np.ndarray:
    """The host's channel order of an RGB array; refuses anything but uint8 [H, W, 3]."""
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f'image {index}: expected path, array or PIL image, got {type(pixels).__name__}')
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        shape = list(pixels.shape)
        raise ValueError(f'image {index}: expected RGB, uint8 [H, W, 3], got {pixels.dtype} {shape}')
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a bool mask [H, W]."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode('ascii')}
