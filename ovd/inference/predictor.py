"""Ask a trained model: words in, the user's own names out, on boxes and masks or on every pixel.

Preprocessing is the config's test pipeline and post-processing is the model's own, so with ``raw=True`` the
numbers are those of ``tools/test.py``. By default scores become answers as ``answering.py`` says: other words
compete, an object has one name, and what is shown is mostly right.
Reading order: ``Predictor``, helpers.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from ..checkpoints.loading import load_for_inference, load_tensors
from ..config import load_config
from ..datasets.image_pipeline import equal_shapes, image_steps
from ..datasets.images import BrokenImageError, as_rgb
from ..datasets.images import ImageSource as Picture
from ..devices import find_device
from ..encoders.sources import resolve_built_in
from ..registry import MODELS
from ..text.vocabulary import Vocabulary
from .answering import (
    AnswerOptions,
    find_options,
    picture_notices,
    resolve_instances,
    resolve_pixels,
    word_notices,
)
from .asking import Question, WordQuestions
from .draw import RGB, name_colors
from .model_folders.model_folder import ModelCard, find_model_folder, read_model_folder, write_model_folder
from .predictions import Grounding, Phrase, Prediction, Segmentation, find_background
from .questions import caption_question
from .verifying import CropVerifier, has_image_tower

if TYPE_CHECKING:
    from ..models.base import OpenVocabularyModel


@dataclass(frozen=True)
class LoadedImage:
    """An image that has been through the test pipeline; see ``Predictor.load``.

    Attributes:
        data: what the pipeline gave: the input tensor and its data sample.
        source: what was loaded.
    """

    data: dict[str, Any]
    source: Any


ImageSource = Picture | LoadedImage
Answer = Prediction | Segmentation
_ONE_IMAGE = (str, os.PathLike, np.ndarray, Image.Image, LoadedImage)


class Predictor:
    """A model with weights, ready for words and images.

    ::

        predictor = Predictor('configs/vild_shapes.py', 'work_dirs/vild_shapes/latest.pth')
        for prediction in predictor.predict(['one.png', 'two.png'], 'red star, heart, ring'):
            print(prediction.names, prediction.boxes, prediction.presence)

    With a segmentor each answer is a ``Segmentation``: ``answer.labels`` [H, W], ``answer.areas``. A model
    that reads sentences, such as ``GLIP``, finds what they name::

        (answer,) = predictor.ground('one.png', 'a red star above a ring')
        print(answer.phrases, answer.names, answer.boxes)

    A model folder has all that is needed: ``Predictor.from_pretrained('groupvit-gcc-yfcc')``.

    Args:
        config: path of a config, or a loaded one; its ``test_dataloader`` gives the test pipeline.
        checkpoint: weights of that model: safetensors, or a torch file, which is read weights-only; None for
            models without weights of their own, such as ``ClipSegmentor``.
        device: for example ``'cpu'`` or ``'cuda:1'``; by default the GPU if there is one.
        options: how scores become answers; by default those stored beside the checkpoint, see
            ``AnswerOptions``.
    Attributes:
        name: of the model, where it comes from a model folder.
        options: how scores become answers.
    Raises:
        FileNotFoundError: config or checkpoint is absent.
        ValueError: a checkpoint of another model, an unknown device, or a model that takes no vocabulary.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Config,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        options: AnswerOptions | None = None,
    ) -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self.name = ''
        self.device = torch.device(find_device(None if device is None else str(device)))
        with DefaultScope.overwrite_default_scope(self.config.get('default_scope', 'mmdet')):
            self.model = _build_model(self.config, checkpoint).to(self.device).eval()
            self._from_path, self._from_array = _test_pipelines(self.config)
        self.options = find_options(self.config, checkpoint) if options is None else options
        self._questions = WordQuestions(self.model)
        self._verifier: CropVerifier | None = None
        self._words: Any = None
        self._templates: Any = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        device: str | torch.device | None = None,
        allow: Iterable[str] = (),
    ) -> 'Predictor':
        """The model in a model folder, given by its path or by its name under ``$OVD_HOME``.

        Nothing of the folder is executed and nothing is fetched; the numbers are those of ``tools/test.py``
        with the weights and the config that it was made of.

        Args:
            device: as for the class.
            allow: classes that the folder's settings may name beyond those of ovd and the usual ones of the
                hosts, for a folder that you trust.
        Raises:
            FileNotFoundError, ValueError: see ``find_model_folder`` and ``read_model_folder``.
        """
        folder = read_model_folder(find_model_folder(name), allow)
        data = {'dataset': {'type': 'model folder', 'pipeline': folder.pipeline}}
        config = {'default_scope': folder.default_scope, 'model': folder.model, 'test_dataloader': data}
        options = AnswerOptions.from_dict(folder.answering or {}, str(name))
        predictor = cls(Config(config), folder.weights, device, options)
        predictor.name = folder.name
        return predictor

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        card: ModelCard | None = None,
        replace: bool = False,
        name: str | None = None,
    ) -> Path:
        """Write a model folder with the words in use as its default; see ``write_model_folder``.

        Args:
            folder: to be made.
            card: what ``MODEL_CARD.md`` tells.
            replace: put it in place of a model folder that is there.
            name: of the model, by default that of the folder.
        """
        return write_model_folder(
            folder,
            self.model,
            self.config,
            question_pipeline(self.config),
            vocabulary=self._questions.known if self._words is None else self.vocabulary,
            fingerprint=self.model.text_fingerprint,
            answering=self.options.to_dict(),
            card=card,
            replace=replace,
            name=name,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The words asked for; those of the config until ``set_vocabulary`` is called."""
        return self._questions.build(self._words, self._templates).asked

    def set_vocabulary(self, words: Any, templates: Any = None) -> 'Predictor':
        """Ask for other words from now on; words asked for before cost no encoding.

        Threads that ask for different words hand them to ``predict`` instead.

        Args:
            words: anything ``Vocabulary.parse`` reads, a ``Vocabulary``, or ``TextEmbeddings``.
            templates: prompt templates, by default those of the config.
        Returns:
            the predictor itself.
        """
        question = self._questions.build(words, templates)
        self._words, self._templates = words, templates
        with self._questions.applied(question):
            return self

    @property
    def is_segmentor(self) -> bool:
        """Whether the answers are ``Segmentation``s."""
        return self.model.answers == 'pixels'

    @property
    def with_background(self) -> bool:
        """Whether the model has a background of its own, beside the words."""
        return self.model.with_background

    def set_background(self, use: bool) -> 'Predictor':
        """Let pixels that no word describes be background, or give each of them its best word.

        Returns:
            the predictor itself.
        Raises:
            ValueError: a model without a background of its own.
        """
        self.model.set_background(use)
        return self

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        words: Any = None,
        *,
        batch_size: int = 1,
        score_threshold: float | Mapping[str, float] | None = None,
        max_per_image: int | None = None,
        raw: bool = False,
    ) -> list[Any]:
        """Find words on images.

        Args:
            images: one or many of: a path, an RGB array (uint8 [H, W, 3]), a PIL image.
            words: what to look for, this time only, in any spelling of ``Vocabulary.parse``; by default the
                words of ``set_vocabulary``. Safe to call from several threads with different words.
            batch_size: images per forward at most. Only images of equal input size share a batch, so the
                result on an image does not depend on its neighbours.
            score_threshold: instances below are not shown: one number, or numbers of single words; by default
                the thresholds of ``options``. Only a lower limit when ``raw``, by default none.
            max_per_image: the best so many are kept, of those that the config's ``test_cfg`` keeps.
            raw: what the model finds for these words alone, as ``tools/test.py`` scores it: no rivals,
                several names for one object, no threshold.
        Returns:
            a ``Prediction`` for each image, a ``Segmentation`` by segmentors, in the order of ``images``.
        Raises:
            FileNotFoundError: an image is absent; the message names it.
            ValueError: bad words or thresholds, an image that cannot be read or resized, or a segmentor that
                was asked to select instances.
        """
        if self.is_segmentor and (score_threshold is not None or max_per_image is not None):
            raise ValueError(
                f'score_threshold and max_per_image select instances, '
                f'{type(self.model).__name__} labels pixels'
            )
        if max_per_image is not None and max_per_image < 1:
            raise ValueError(f'max_per_image is {max_per_image}, expected at least 1')
        options = self.options.with_threshold(score_threshold)
        asked = self._words if words is None else words
        question = self._questions.build(asked, self._templates, None if raw else options)
        names = question.asked.labels
        known = self._questions.known
        about_words = () if raw else word_notices(names, options, () if known is None else known.labels)
        answers: list[Any] = []
        for sample, source in self._stream(images, batch_size, question=question):
            answer = self._answer(sample, question.shown, source)
            if raw:
                lowest = 0.0 if score_threshold is None else options.floor
                answers.append(
                    answer.select(lowest, max_per_image) if isinstance(answer, Prediction) else answer
                )
                continue
            notices = (*self._picture_notices(source), *about_words)
            if isinstance(answer, Prediction):
                answer = self._resolved(answer, question.whole, names, options)
                answers.append(replace(answer, notices=notices).select(max_per_image=max_per_image))
            else:
                answers.append(replace(resolve_pixels(answer, len(names), options), notices=notices))
        return answers

    def ground(
        self,
        images: ImageSource | Sequence[ImageSource],
        caption: str,
        phrases: Sequence[Any] | None = None,
        *,
        batch_size: int = 1,
        score_threshold: float | None = None,
        max_per_image: int | None = None,
        raw: bool = False,
    ) -> list[Grounding]:
        """Find the phrases of a sentence on images; the vocabulary is left as it is.

        Args:
            images: as in ``predict``.
            caption: the sentence, of any length, asked of every image.
            phrases: what to look for, see ``caption_question``; by default what the model takes for phrases.
            batch_size, score_threshold, max_per_image: as in ``predict``.
            raw: several phrases for one object, and no threshold but a given one.
        Raises:
            FileNotFoundError: an image is absent; the message names it.
            ValueError: an image that cannot be read, or a wrong question, see ``caption_question``.
        """
        options = self.options.with_threshold(score_threshold)
        prompt = caption_question(self.model, caption, phrases)
        question = {'text': caption, 'tokens_positive': [list(map(list, ranges)) for ranges in prompt.spans]}
        found = tuple(Phrase(text, spans) for text, spans in zip(prompt.names, prompt.spans))
        about_words = () if raw else word_notices(prompt.names, options, ())
        answers = []
        for sample, source in self._stream(images, batch_size, question):
            answer = replace(_instances(sample, prompt.names), source=source)
            if raw:
                answer = answer.select(0.0 if score_threshold is None else options.floor)
            else:
                answer = resolve_instances(answer, prompt.names, options)
                answer = replace(answer, notices=(*self._picture_notices(source), *about_words))
            values = {field.name: getattr(answer, field.name) for field in fields(answer)}
            grounding = Grounding(**values, caption=caption, phrases=found)
            answers.append(grounding.select(max_per_image=max_per_image))
        return answers

    def load(self, image: ImageSource) -> LoadedImage:
        """An image read and preprocessed, which every method takes for an image; threads may load ahead.

        Raises:
            FileNotFoundError, ValueError: as in ``predict``.
        """
        return image if isinstance(image, LoadedImage) else LoadedImage(self._load(image, 0), image)

    def prepare(self, image: ImageSource) -> tuple[torch.Tensor, Any]:
        """The preprocessed input [1, 3, H, W] that the model gets for an image, and its data sample."""
        loaded = self._load(image, 0)
        batch = {key: [loaded[key]] for key in ('inputs', 'data_samples')}
        data = self.model.data_preprocessor(batch, False)
        return data['inputs'], data['data_samples'][0]

    def _stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        batch_size: int,
        metainfo: Mapping[str, Any] | None = None,
        question: Question | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """(Data sample with the answer, what was asked about), ``batch_size`` images in memory at a time.

        Args:
            metainfo: what is added to each data sample.
            question: words that the model is asked for; None leaves those in use.
        """
        sources = [images] if isinstance(images, _ONE_IMAGE) else list(images)
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}')
        for start in range(0, len(sources), batch_size):
            window = sources[start : start + batch_size]
            inputs = [self._load(source, start + index) for index, source in enumerate(window)]
            for item in inputs:
                item['data_samples'].set_metainfo(dict(metainfo or {}))
            found: list[Any] = [None] * len(inputs)
            for group in equal_shapes(inputs):
                batch = {key: [inputs[index][key] for index in group] for key in ('inputs', 'data_samples')}
                with self._questions.applied(question), torch.no_grad():
                    samples = self.model.test_step(batch)
                for index, sample in zip(group, samples):
                    found[index] = sample
            yield from zip(found, map(_source, window))

    def _load(self, source: ImageSource, index: int) -> dict[str, Any]:
        """Run the test pipeline on the image at position ``index`` of the call."""
        if isinstance(source, LoadedImage):
            return {**source.data, 'data_samples': source.data['data_samples'].clone()}
        try:
            if isinstance(source, (str, os.PathLike)):
                loaded = self._from_path({'img_path': os.fspath(source), 'img_id': index})
            else:
                loaded = self._from_array(
                    {
                        'img': np.ascontiguousarray(as_rgb(source, f'image {index}')[:, :, ::-1]),
                        'img_id': index,
                    }
                )
        except cv2.error as error:
            # A side of less than half a pixel, where the longer one is scaled to the input size.
            name = source if isinstance(source, (str, os.PathLike)) else index
            raise BrokenImageError(f'image {name} is too long and thin for the test pipeline') from error
        data: dict[str, Any] = loaded
        return data

    def _answer(self, sample: Any, shown: tuple[str, ...], source: Any) -> Answer:
        """What a data sample holds, with the names of its labels."""
        if self.is_segmentor:
            own = self.model.background_index is not None
            return Segmentation(
                labels=sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int64),
                vocabulary=shown,
                background=len(shown) if own else find_background(shown),
                source=source,
            )
        return replace(_instances(sample, shown), source=source)

    def _resolved(
        self, answer: Prediction, words: Vocabulary, names: Sequence[str], options: AnswerOptions
    ) -> Prediction:
        """One name per object, after the verifier of the options has seen the best candidates."""
        verifier = self._find_verifier(options.verifier)
        if verifier is not None and answer.source is not None:
            answer = verifier.rescore(answer, as_rgb(answer.source), words, options)
        return resolve_instances(answer, names, options)

    def _find_verifier(self, name: str | None) -> CropVerifier | None:
        if name == 'auto':
            text = self.config.model.get('text') or {}
            name = resolve_built_in((text.get('encoder') or {}).get('model') or '')
            name = name if has_image_tower(name) else None
        if name is None:
            return None
        if self._verifier is None or self._verifier.model != resolve_built_in(name):
            self._verifier = CropVerifier(name, str(self.device))
        return self._verifier

    def _picture_notices(self, source: Any) -> tuple[str, ...]:
        """What to know about a picture; pictures are read again only for models with a record."""
        return () if self.options.knowledge is None else picture_notices(self.options, as_rgb(source))

    def colors(self) -> dict[str, RGB]:
        """A colour for each name of the vocabulary, equal on every picture."""
        return name_colors(self.vocabulary.labels)


def load(
    name: str | os.PathLike[str], device: str | torch.device | None = None, allow: Iterable[str] = ()
) -> Predictor:
    """Open a model folder, given by its path or by its name: ``Predictor.from_pretrained``."""
    return Predictor.from_pretrained(name, device, allow)


def _source(image: ImageSource) -> Any:
    """What an answer remembers of its image."""
    return image.source if isinstance(image, LoadedImage) else image


def _build_model(config: Config, checkpoint: str | os.PathLike[str] | None) -> 'OpenVocabularyModel':
    """The config's model with the checkpoint's weights, on the CPU."""
    from ..models.base import OpenVocabularyModel, check_checkpoint  # brings the hosts

    tensors = None if checkpoint is None else load_tensors(checkpoint)
    section = copy.deepcopy(config.model)
    if 'data_preprocessor' in config:
        section.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(section)
    if not isinstance(model, OpenVocabularyModel):
        raise ValueError(f'{type(model).__name__} takes no vocabulary: its classes are fixed in its weights')
    check_checkpoint(type(model), checkpoint)
    if tensors is not None:
        load_for_inference(model, tensors, source=checkpoint or '')
    return model


def _instances(sample: Any, shown: Sequence[str]) -> Prediction:
    """The instances of a data sample, moved to numpy, with the names of their labels."""
    instances = sample.pred_instances.cpu().numpy()
    labels = instances.labels.astype(np.int64)
    return Prediction(
        boxes=instances.bboxes.astype(np.float32).reshape(-1, 4),
        scores=instances.scores.astype(np.float32),
        labels=labels,
        names=tuple(shown[label] for label in labels),
        masks=instances.masks.astype(bool) if 'masks' in instances else None,
        size=tuple(sample.ori_shape),
    )


def question_pipeline(config: Config) -> list[Mapping[str, Any]]:
    """The config's test pipeline without annotations.

    Raises:
        ValueError: the config has no pipeline for questions.
    """
    loader = config.get('test_dataloader')
    if loader is None:
        raise ValueError(
            'the config has no test_dataloader, whose pipeline prepares images: take one made for testing'
        )
    dataset = loader.dataset
    while 'pipeline' not in dataset:
        # Inside a wrapper; of several data sets the first one's, or what all parts have in common.
        inside = [dataset[key] for key in ('dataset', 'datasets', 'common') if key in dataset]
        if not inside:
            raise ValueError(
                f'the test data set {dataset.get("type")!r} has no pipeline to prepare images with'
            )
        dataset = inside[0][0] if isinstance(inside[0], list) else inside[0]
    steps = image_steps(dataset.pipeline)
    if any(step['type'].endswith('PackCaptions') for step in steps):
        raise ValueError(
            'the test pipeline of this config is for pairs of image and caption, not for questions'
        )
    return steps


def _test_pipelines(config: Config) -> tuple[Compose, Compose]:
    """The config's test pipeline without annotations: for a path, and for a BGR array under ``img``."""
    steps = question_pipeline(config)
    scope = config.get('default_scope', 'mmdet')
    from_array = {'type': f'{scope}.LoadImageFromNDArray', 'to_float32': steps[0].get('to_float32', False)}
    return Compose(steps), Compose([from_array, *steps[1:]])
