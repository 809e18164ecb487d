"""GLIP: a one-stage detector that grounds the words of a text, class lists and captions alike.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022; microsoft/GLIP, and its port in mmdet.
Reading order: GLIP (loss, predict, the questions it is asked); what samples teach is in lessons.py, the head
in glip_head.py, the fusion of image and text in ovd.models.glip.fusion, prompts and their features in
ovd.text.phrases and ovd.encoders.tokens.prompt_features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import InstanceData
from torch import Tensor

from ...datasets.grounding.training_prompts import (
    TrainingPrompt,
    build_training_prompt,
    finish,
    single,
)
from ...encoders.loading import PathLike
from ...encoders.text_embeddings import TextEmbeddings
from ...encoders.tokens.build_token_encoder import build_token_encoder
from ...encoders.tokens.prompt_builder import PromptBuilder
from ...encoders.tokens.prompt_features import PromptBatch, PromptEncoder, PromptFeatures, encode_prompts
from ...encoders.tokens.prompt_tuning import PromptTuning
from ...encoders.tokens.token_encoder import TokenFeatures
from ...registry import MODELS
from ...text.nouns import NounExtractor
from ...text.phrases import Prompt, Wordings, caption_prompt, check_wordings
from ...text.templates import Templates
from ...text.vocabulary import Vocabulary
from ..base import OpenVocabularyModel
from ..partial_training import evaluate_frozen, train_only
from .head import RANKINGS, GLIPHead, HeadOutputs
from .token_scores import AGGREGATIONS
from .training_targets import TrainingTargets, image_targets, pad_rows

_TEXT_KEYS = {'encoder', 'vocabulary', 'names_per_prompt', 'final', 'nouns', 'wordings', 'offset'}

_TEST_CFG: dict[str, Any] = {
    'score_thr': 0.05,
    'nms_pre': 1000,
    'nms': {'type': 'nms', 'iou_threshold': 0.6},
    'max_per_img': 100,
    'max_per_prompt': None,
    'ranking': 'centerness',
    'aggregation': 'mean',
    'pairs_per_forward': 8,
    'places_per_forward': 2048,
}


@MODELS.register_module()
class GLIP(OpenVocabularyModel, BaseDetector):
    """Detector that reads an image together with a sentence.

    What is looked for comes with each data sample, or is the model's vocabulary:

    - ``text``, a string: a caption. Its phrases are ``tokens_positive``, per phrase (a list, or a mapping
      from label) its character ranges; without them its noun phrases are found.
    - ``text``, a list of names: classes of this image; ``wordings``, of some of them, see ``word_name``.
    - nothing: the classes of the vocabulary, in as many sentences as they need.

    Predicted labels, and those of ``gt_instances``, are places in that list; ``label_names`` of the
    predictions are the user's own words. In training, the characters in ``tokens_ignored`` do not count in
    the token loss: phrases that are true of the image but have no boxes.

    Args:
        backbone, neck: of mmdet.
        bbox_head: arguments of ``GLIPHead``.
        text: ``encoder``, of ``build_token_encoder``; ``vocabulary``, any spelling of ``Vocabulary.parse``;
            ``names_per_prompt``, cut class lists after every so many names (40 in published results on
            LVIS), by default into the fewest sentences; ``final``, what ends a sentence of class names;
            ``nouns``, arguments of ``NounExtractor`` for captions without phrases;
            ``phrases=False`` gives single words; ``wordings`` of some names of the vocabulary, see
            ``word_name``; ``offset``, True for shifts of the vocabulary's token features that are learned
            (prompt tuning), or the file of such shifts, which also knows the vocabulary.
        test_cfg: ``score_thr`` of the probability; ``nms_pre`` pairs of place and word per level and
            sentence; ``nms``; ``max_per_img`` and, of each sentence, ``max_per_prompt`` boxes (None: all);
            ``ranking`` of the pairs before suppression, 'centerness' (probability times centerness, as the
            authors' code) or 'probability' (as mmdet's port); ``aggregation``, see ``class_scores``;
            ``pairs_per_forward``, sentences about an image at a time, fewer if the maps under them would have
            more than ``places_per_forward`` places together.
        trainable: patterns (``fnmatch``) of the names of the parameters to be trained; the others are frozen,
            and parts of which nothing is trained stay in eval mode. By default all that the parts train.
    """

    answers = 'boxes'
    reads_sentences = True
    sample_keys: tuple[str, ...] = ('text', 'tokens_positive', 'tokens_ignored', 'prompt')

    def __init__(
        self,
        backbone: Mapping[str, Any],
        bbox_head: Mapping[str, Any],
        text: Mapping[str, Any],
        neck: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        trainable: Sequence[str] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        if neck is not None:
            self.neck = MODELS.build(neck)
        self.text = build_token_encoder(text['encoder'])
        self.text_offset: PromptTuning | None = None
        head = {'type': 'ovd.GLIPHead', 'text_channels': self.text.embed_dim, **bbox_head}
        self.bbox_head: GLIPHead = MODELS.build(head)
        unknown = set(text) - _TEXT_KEYS
        if unknown:
            raise ValueError(f'unknown keys {sorted(unknown)} of text')
        self.names_per_prompt: int | None = text.get('names_per_prompt')
        self.final: str = text.get('final', '')
        self.test_cfg = checked_test_cfg(test_cfg or {})
        self._nouns_cfg = dict(text.get('nouns') or {})
        self._nouns: NounExtractor | None = None
        self._builder = PromptBuilder(self.text.tokenizer)
        self._prompts = PromptEncoder(self.text)
        self._wordings: Wordings = text.get('wordings') or {}
        self._class_prompts: list[Prompt] = []
        offset = text.get('offset') or None
        words = text.get('vocabulary')
        if offset not in (None, True):
            self.text_offset = PromptTuning.load(offset)
            words = self.text_offset.vocabulary if words is None else words
        if words is not None:
            self.set_vocabulary(words)
            check_wordings(self._wordings, self.vocabulary.names)
        if offset is not None:
            self._use_offset()
        self._restrict(trainable)

    @property
    def text_fingerprint(self) -> str | None:
        """The fingerprint of the token encoder."""
        return self.text.fingerprint

    def encode_vocabulary(
        self, vocabulary: Vocabulary, templates: 'Templates | None' = None
    ) -> 'PromptedVocabulary':
        """Write class names into sentences; ``predict`` encodes them, once as long as the weights stay.

        Raises:
            ValueError: a name without tokens, or longer than a prompt; templates, which sentences of names
                do not have.
        """
        if templates is not None:
            raise ValueError(
                f'{type(self).__name__} reads class names in one sentence and takes no templates'
            )
        return PromptedVocabulary(vocabulary, self._name_prompts(vocabulary.names, self._wordings))

    def use_text_embeddings(self, text_embeddings: 'PromptedVocabulary') -> None:
        self._class_prompts = text_embeddings.prompts
        self._nouns = None

    def check_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        """Refuse (ValueError) class vectors: words are read in sentences."""
        raise ValueError(f'{type(self).__name__} reads words in sentences and takes no class vectors')

    def find_phrases(self, caption: str) -> list[list[list[int]]]:
        """Character ranges [start, end) of the noun phrases of a caption that can be read, a list per phrase.

        Raises:
            ValueError, ImportError: see ``NounExtractor``.
        """
        if self._nouns is None:
            words = None if self._encoded is None else self._encoded.vocabulary
            self._nouns = NounExtractor(**{'vocabulary': words, 'phrases': True, **self._nouns_cfg})
        found = [[[noun.start, noun.end]] for noun in self._nouns.extract(caption)]
        return self.readable_phrases(caption, found)

    def readable_phrases(self, caption: str, phrases: Sequence[list[list[int]]]) -> list[list[list[int]]]:
        """Those of a caption's phrases that have tokens, and not more than a prompt takes."""
        try:
            self._builder.caption_prompts(caption_prompt(caption, phrases))
        except ValueError:
            if len(phrases) == 1:
                return []
            return [phrase for phrase in phrases if self.readable_phrases(caption, [phrase])]
        return list(phrases)

    def describe(self) -> dict[str, Any]:
        """What results depend on besides data and weights, for the protocol of a report: fusion makes scores
        depend on how names are cut.
        """
        prompting = {
            'names_per_prompt': self.names_per_prompt,
            'vocabulary_sentences': len(self._class_prompts),
            **{key: self.test_cfg[key] for key in ('ranking', 'aggregation', 'score_thr')},
        }
        return {'prompting': prompting}

    def train(self, mode: bool = True) -> 'GLIP':
        """Forget encoded prompts too: hooks change weights behind autograd's back between the modes."""
        self._prompts.forget()
        super().train(mode)
        if self._is_partial:
            evaluate_frozen(self)
        return self

    def save_offset(self, path: PathLike) -> None:
        """Write the tuned prompt as a file that ``text.offset`` reads.

        Raises:
            ValueError: the model has no prompt that is tuned.
        """
        if self.text_offset is None:
            raise ValueError('the model has no tuned prompt: train with text.offset=True')
        self.text_offset.save(path, self.text.fingerprint)

    def _use_offset(self) -> None:
        """Shift the features of the vocabulary's sentences, from now on."""
        prompts = self._vocabulary_prompts()
        if self.text_offset is None:
            texts = [prompt.text for prompt in prompts]
            lengths = [len(prompt.token_ids) for prompt in prompts]
            self.text_offset = PromptTuning(texts, lengths, self.text.embed_dim, self.vocabulary)
        unknown = [p.text for p in prompts if p.text not in self.text_offset.lengths]
        if unknown:
            raise ValueError(f'the prompt of text.offset was tuned for other words than {unknown[0][:60]!r}')
        if self.text_offset.rows.shape[1] != self.text.embed_dim:
            raise ValueError(
                f'the prompt of text.offset has width {self.text_offset.rows.shape[1]}, '
                f'the text encoder {self.text.embed_dim}'
            )
        self._prompts.tuning = self.text_offset

    def _restrict(self, trainable: Sequence[str] | None) -> None:
        """Train only what the patterns name, from now on."""
        self._is_partial = trainable is not None
        if trainable is not None:
            train_only(self, trainable)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> maps [B, C, h, w] of all levels."""
        features: tuple[Tensor, ...] = self.backbone(batch_inputs)
        return self.neck(features) if self.with_neck else features

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of a batch, whose images may have class lists and captions side by side."""
        targets = self._targets(*self._training_samples(batch_data_samples))
        outputs = self.bbox_head(self.extract_feat(batch_inputs), targets.text)
        return self.bbox_head.loss(outputs, targets.counted, targets.images)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Detections of a batch; ``rescale`` puts them into the frame of the original images.

        Each image is seen by itself, without the padding that its neighbours in the batch would need: no bit
        of its result depends on them. A single image may come with several data samples, which ask several
        questions; its features are computed once.
        """
        questions = [self._question(sample) for sample in batch_data_samples]
        every = self._prompts.encode(list(dict.fromkeys(p for prompts, _ in questions for p in prompts)))
        encoded = {state.prompt: state for state in every}
        every_row = list(range(len(questions)))
        for image, rows in enumerate([every_row] if len(batch_inputs) == 1 else [[row] for row in every_row]):
            pairs = [(place, encoded[p]) for place, row in enumerate(rows) for p in questions[row][0]]
            samples = [batch_data_samples[row] for row in rows]
            inputs = self._unpadded(batch_inputs[image : image + 1], samples[0])
            found = self._detect(inputs, pairs, samples, rescale)
            for row, sample, instances in zip(rows, samples, found):
                names = questions[row][1]
                instances.label_names = [names[label] for label in instances.labels.tolist()]
                sample.pred_instances = instances
        return batch_data_samples

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> HeadOutputs:
        """The head's raw outputs, for one prompt per image."""
        prompts = [self._training_prompt(sample, [])[0] for sample in batch_data_samples]
        return self.bbox_head(self.extract_feat(batch_inputs), self._encode_training(prompts))

    def _detect(
        self,
        inputs: Tensor,
        pairs: Sequence[tuple[int, PromptFeatures]],
        samples: Sequence[DetDataSample],
        rescale: bool,
    ) -> list[InstanceData]:
        """Detections of an image [1, 3, H, W] for each of its samples, read with that sample's sentences."""
        head = self.bbox_head
        maps: Sequence[Tensor] = self.extract_feat(inputs)
        if not head.is_fused:  # the tower sees no text: once per image is enough
            maps, _ = head.tower(maps, _no_text(inputs))
        places = sum(level.shape[2] * level.shape[3] for level in maps)
        fitting = self.test_cfg['places_per_forward'] // places
        step = max(1, min(self.test_cfg['pairs_per_forward'], fitting))
        found: list[list[InstanceData]] = [[] for _ in samples]
        for row, sample in enumerate(samples):
            states = [state for owner, state in pairs if owner == row]
            for start in range(0, len(states), step):
                batch = PromptBatch.of(states[start : start + step])
                count = len(batch.labels)
                seen = [level.expand(count, -1, -1, -1) for level in maps]
                found[row] += self._detect_pairs(seen, batch, [sample.metainfo] * count, rescale)
        return [_best(parts, self.test_cfg['max_per_img'], inputs) for parts in found]

    def _detect_pairs(
        self,
        maps: Sequence[Tensor],
        batch: PromptBatch,
        metainfos: Sequence[Mapping[str, Any]],
        rescale: bool,
    ) -> list[InstanceData]:
        """Detections of P images with one sentence each; a shallow tower has already seen the maps."""
        head, text = self.bbox_head, batch.features
        outputs = head(maps, text) if head.is_fused else head.align(maps, text.embedded)
        return head.predict(outputs, batch.token_maps, batch.labels, metainfos, self.test_cfg, rescale)

    def _unpadded(self, inputs: Tensor, sample: DetDataSample) -> Tensor:
        """An image [1, 3, H, W] of a batch as it would be alone."""
        preprocessor = self.data_preprocessor
        divisor = preprocessor.pad_size_divisor if isinstance(preprocessor, ImgDataPreprocessor) else 1
        height, width = (-(-side // divisor) * divisor for side in sample.img_shape)
        return inputs[..., :height, :width]

    def _name_prompts(self, names: Sequence[str], wordings: Wordings) -> list[Prompt]:
        return self._builder.name_prompts(names, self.names_per_prompt, self.final, wordings)

    def _listed_prompts(self, sample: DetDataSample) -> list[Prompt]:
        """The sentences of an image that comes with a list of names."""
        wordings = sample.get('wordings', None) or {}
        check_wordings(wordings, sample.text)
        return self._name_prompts(sample.text, wordings)

    def _question(self, sample: DetDataSample) -> tuple[list[Prompt], Sequence[str] | dict[int, str]]:
        """The sentences that an image is read with, and the user's word for each label."""
        text = sample.get('text', None)
        if text is None:
            return self._vocabulary_prompts(), self.vocabulary.labels
        if not isinstance(text, str):
            return self._listed_prompts(sample), list(text)
        spans = sample.get('tokens_positive', None)
        if spans is None:
            spans = self.find_phrases(text)
        prompt = caption_prompt(text, spans)
        prompts = self._builder.caption_prompts(prompt) if len(prompt) else []
        return prompts, dict(zip(prompt.labels, prompt.names))

    def _vocabulary_prompts(self) -> list[Prompt]:
        self.prepare_text()
        return self._class_prompts

    def _training_samples(
        self, samples: Sequence[DetDataSample]
    ) -> tuple[list[TrainingPrompt], list[InstanceData]]:
        """The prompt of each image and the boxes that it describes.

        Raises:
            ValueError: a prompt of another tokenizer, or boxes that were changed after it was built.
        """
        prompts, instances = [], []
        for sample in samples:
            boxes = sample.gt_instances
            prompt: TrainingPrompt | None = sample.get('prompt', None)
            if prompt is None:
                labels = boxes.labels.tolist()
                prompt, kept = self._training_prompt(sample, labels)
                boxes = boxes if len(kept) == len(labels) else boxes[kept]
            elif prompt.tokenizer != self.text.tokenizer.fingerprint:
                raise ValueError(
                    f'the data loader built prompts with tokenizer {prompt.tokenizer}, the model has '
                    f'{self.text.tokenizer.fingerprint}: give ovd.BuildPrompt the text.encoder of the model'
                )
            elif len(prompt.positive_map) != len(boxes):
                raise ValueError(
                    f'the prompt describes {len(prompt.positive_map)} boxes, the image has {len(boxes)}: '
                    'ovd.BuildPrompt must come after every transform that removes boxes'
                )
            prompts.append(prompt)
            instances.append(boxes)
        return prompts, instances

    def _training_prompt(
        self, sample: DetDataSample, labels: Sequence[int]
    ) -> tuple[TrainingPrompt, list[int]]:
        """Build the prompt of a sample whose data loader did not, see ``build_training_prompt``."""
        if sample.get('text', None) is not None:
            return build_training_prompt(self._builder, sample.metainfo, labels, self.final)
        prompt = finish(self._builder, single(self._vocabulary_prompts()), labels)
        self._check_base(labels)
        return prompt, list(range(len(labels)))

    def _targets(
        self,
        prompts: list[TrainingPrompt],
        instances: list[InstanceData],
        token_ids: Tensor | None = None,
    ) -> TrainingTargets:
        """Targets of B images; token_ids [B, L] are encoded instead of the prompts' own."""
        text = self._encode_training(prompts, token_ids)
        length, device = text.mask.shape[1], text.mask.device
        counted = pad_rows([prompt.counted for prompt in prompts], length, device)
        images = [image_targets(boxes, prompt, length) for boxes, prompt in zip(instances, prompts)]
        return TrainingTargets(text, prompts, counted, instances, images)

    def _encode_training(
        self, prompts: Sequence[TrainingPrompt], token_ids: Tensor | None = None
    ) -> TokenFeatures:
        """Token features of B prompts, with gradients; equal ones are encoded once."""
        ids = [()] * len(prompts) if token_ids is None else [tuple(row) for row in token_ids.tolist()]
        keys = list(zip((ready.prompt for ready in prompts), ids))
        unique = list(dict.fromkeys(keys))
        chosen = None if token_ids is None else token_ids[[keys.index(key) for key in unique]]
        features = encode_prompts(self.text, [prompt for prompt, _ in unique], chosen, self.text_offset)
        if len(unique) == len(keys):
            return features
        rows = [unique.index(key) for key in keys]
        return TokenFeatures(*(part[rows] for part in features))

    def _check_base(self, labels: Sequence[int]) -> None:
        """Refuse boxes of novel classes in training: they would leak the answer into the evaluation."""
        leaked = sorted({label for label in labels if self.vocabulary.is_novel[label]})
        if leaked:
            names = ', '.join(repr(self.vocabulary.names[label]) for label in leaked)
            raise ValueError(
                f'training boxes of novel classes {names}: the novel classes would leak into training'
            )


@dataclass(frozen=True)
class PromptedVocabulary:
    """Words, and the sentences that they are read in."""

    vocabulary: Vocabulary
    prompts: list[Prompt]


def checked_test_cfg(test_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the predictions, completed; raises ValueError for unknown keys and values."""
    unknown = set(test_cfg) - set(_TEST_CFG)
    if unknown:
        raise ValueError(f'unknown keys {sorted(unknown)} of test_cfg, expected some of {sorted(_TEST_CFG)}')
    settings = _TEST_CFG | dict(test_cfg)
    for key, known in (('ranking', RANKINGS), ('aggregation', AGGREGATIONS)):
        if settings[key] not in known:
            raise ValueError(f'test_cfg.{key} must be one of {list(known)}, got {settings[key]!r}')
    for key in ('pairs_per_forward', 'places_per_forward'):
        if settings[key] < 1:
            raise ValueError(f'test_cfg.{key} must be positive, got {settings[key]}')
    return settings


def _no_text(inputs: Tensor) -> TokenFeatures:
    """A text of no tokens for each image."""
    nothing = inputs.new_zeros(len(inputs), 0, 1)
    return TokenFeatures(nothing, nothing, nothing[..., 0].bool())


def _best(parts: Sequence[InstanceData], limit: int | None, inputs: Tensor) -> InstanceData:
    """The best boxes of several sentences about one image."""
    if not parts:
        return InstanceData(
            bboxes=inputs.new_zeros(0, 4),
            scores=inputs.new_zeros(0),
            labels=torch.zeros(0, dtype=torch.long, device=inputs.device),
        )
    if len(parts) == 1:
        return parts[0][:limit]
    joined = InstanceData.cat(list(parts))
    if limit is None:
        return joined
    return joined[joined.scores.argsort(descending=True, stable=True)[:limit]]
