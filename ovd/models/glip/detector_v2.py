"""GLIPv2: GLIP that also tells regions of different images apart, guesses hidden words, and draws masks.

Source: Zhang et al., "GLIPv2: Unifying Localization and Vision-Language Understanding", NeurIPS 2022. The
authors released neither code nor weights under this name; the three parts are in the code of GLIP.
Reading order: GLIPv2.loss; the parts are in region_word_loss.py, masked_language.py and mask_head.py.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ...encoders.prompt_features import PromptBatch, PromptFeatures
from ...layers.gather import joint_mean
from ...registry import MODELS
from ...text.phrases import Prompt, clean_name, token_positions
from .detector import GLIP
from .head import Outputs, Truth
from .mask_head import MaskTruth, TextMaskHead
from .masked_language import HiddenTokens, LanguageHead
from .region_word_loss import RegionWordContrast
from .training_targets import Lesson, named_boxes

_NO_CLASS = -1


@MODELS.register_module()
class GLIPv2(GLIP):
    """GLIP with up to three more objectives; without any of them it is GLIP.

    A sample's ``caption_ranges`` are the characters [start, end) of its ``text`` that tell of the image: by
    default all of a caption, and none of a list of names. Other words are never hidden, and a text without
    any is a list of class names. Masks are learned from the samples that have ``gt_instances.masks``.

    Args:
        contrast: arguments of ``RegionWordContrast``. Regions and words of the same class in different images
            belong together where both come from class lists; captions of other images are negatives.
        language: arguments of ``LanguageHead``; the encoder must have a token for hidden words. The text is
            hidden from the whole model, so boxes are found by what is left of it.
        masks: arguments of ``TextMaskHead``.
        masks_at_test: whether detections then come with masks.
        trainable, args, kwargs: see ``GLIP``.
    """

    def __init__(
        self,
        *args: Any,
        contrast: Mapping[str, Any] | None = None,
        language: Mapping[str, Any] | None = None,
        masks: Mapping[str, Any] | None = None,
        masks_at_test: bool = True,
        trainable: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        width, channels = self.text.embed_dim, self.bbox_head.project_text.out_features
        self.contrast = None if contrast is None else RegionWordContrast(channels, width, **contrast)
        self.mask_head = None if masks is None else TextMaskHead(channels, width, **masks)
        self.masks_at_test = masks_at_test
        self.language: LanguageHead | None = None
        if language is not None:
            tokenizer: Any = getattr(self.text, 'tokenizer', None)
            mask_id = getattr(tokenizer, 'mask_token_id', None)
            if mask_id is None:
                raise ValueError(
                    f'masked language modelling needs a text encoder with a token for hidden words, '
                    f'{type(self.text).__name__} has none'
                )
            self.language = LanguageHead(width, len(tokenizer), mask_id, **language)
        if self.contrast is not None or self.language is not None:
            self.sample_keys = (*self.sample_keys, 'caption_ranges')
        self._restrict(trainable)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of a batch; see ``GLIP``."""
        samples, head = batch_data_samples, self.bbox_head
        prompts = [self._training_prompt(sample) for sample in samples]
        hidden = self._hide(prompts, samples)
        lesson = self._lesson(prompts, samples, None if hidden is None else hidden.ids)
        maps = self.extract_feat(batch_inputs)
        fused, tokens = head.tower(maps, lesson.text)
        outputs = head.align(fused, tokens)
        owners = head.owners(outputs.sizes, lesson.truths)
        losses = head.loss(outputs, lesson.counted, lesson.truths, owners)
        if self.contrast is not None:
            places = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
            word_ids = _word_ids(lesson, samples)
            losses['loss_contrast'] = self.contrast(
                places, lesson.text.embedded, lesson.counted, owners, _padded_tokens(lesson.truths), word_ids
            )
        if self.language is not None and hidden is not None:
            rows = self.language.token_losses(tokens, hidden.labels)
            losses['loss_language'] = self.language.weight * joint_mean(rows)
        if self.mask_head is not None:
            regions = self._training_regions(outputs, lesson, samples)
            truths = [_mask_truth(*entry) for entry in zip(samples, prompts, lesson.token_maps)]
            losses['loss_mask'] = self.mask_head.loss(fused, tokens, truths, regions)
        return losses

    @torch.no_grad()
    def _training_regions(
        self, outputs: Outputs, lesson: Lesson, samples: Sequence[DetDataSample]
    ) -> list[Tensor]:
        """Boxes that the model finds itself, per image [D, 4], in the frame of the input."""
        labels = [prompt.labels for prompt in lesson.prompts]
        metainfos = [sample.metainfo for sample in samples]
        found = self.bbox_head.predict(
            outputs, lesson.token_maps, labels, metainfos, self.test_cfg, rescale=False
        )
        return [instances.bboxes for instances in found]

    def _hide(self, prompts: Sequence[Prompt], samples: Sequence[DetDataSample]) -> HiddenTokens | None:
        """Tokens of the sentences with some of them hidden, if any ever are."""
        if self.language is None:
            return None
        found = self.text.tokenize([prompt.text for prompt in prompts])
        may_hide = torch.zeros_like(found.mask)
        for row, (prompt, sample, offsets) in enumerate(zip(prompts, samples, found.offsets)):
            may_hide[row, token_positions(own_ranges(prompt, sample), offsets)] = True
            if self.language.spare_phrases:
                phrases = [span for spans in prompt.spans for span in spans]
                may_hide[row, token_positions(phrases, offsets)] = False
        return self.language.hide(found.ids, may_hide)

    def _detect_pairs(
        self,
        maps: Sequence[Tensor],
        batch: PromptBatch,
        metainfos: Sequence[Mapping[str, Any]],
        rescale: bool,
    ) -> list[InstanceData]:
        if self.mask_head is None or not self.masks_at_test:
            return super()._detect_pairs(maps, batch, metainfos, rescale)
        head, text, limit = self.bbox_head, batch.features, self.test_cfg['max_per_img']
        fused, tokens = head.tower(maps, text) if head.is_fused else (maps, text.embedded)
        outputs = head.align(fused, tokens)
        found = head.predict(outputs, batch.token_maps, batch.labels, metainfos, self.test_cfg, rescale)
        found = [instances[:limit] for instances in found]
        boxes, entities = [], []
        for instances, labels, metainfo in zip(found, batch.labels, metainfos):
            factors = instances.bboxes.new_tensor(metainfo['scale_factor'] if rescale else (1, 1))
            boxes.append(instances.bboxes * factors.repeat(2))
            rows = {label: row for row, label in enumerate(labels)}
            entities.append(torch.tensor([rows[label] for label in instances.labels.tolist()]).long())
        for instances, logits in zip(
            found, self.mask_head.predict(fused, tokens, batch.token_maps, boxes, entities)
        ):
            instances.mask_logits = logits
        return found

    def _detect(
        self,
        inputs: Tensor,
        pairs: Sequence[tuple[int, PromptFeatures]],
        samples: Sequence[DetDataSample],
        rescale: bool,
    ) -> list[InstanceData]:
        found = super()._detect(inputs, pairs, samples, rescale)
        if self.mask_head is not None and self.masks_at_test:
            for instances, sample in zip(found, samples):
                instances.masks = self.mask_head.paste(instances, sample, rescale)
                instances.pop('mask_logits', None)
        return found


def is_list(sample: DetDataSample) -> bool:
    """Whether the text of a sample is a list of class names."""
    text = sample.get('text', None)
    return not isinstance(text, str) or sample.get('caption_ranges', None) == []


def own_ranges(prompt: Prompt, sample: DetDataSample) -> list[tuple[int, int]]:
    """Characters of a sentence that tell of its image; the sentence may be a window of the sample's text."""
    if is_list(sample):
        return []
    ranges = sample.get('caption_ranges', None)
    if ranges is None:
        return [(0, len(prompt.text))]
    return [(start - prompt.start, end - prompt.start) for start, end in ranges]


def class_ids(prompt: Prompt, token_map: Tensor, is_class_list: bool) -> Tensor:
    """[L] int64, the class that each token of a list of class names is part of; negative for none.

    The number follows from the name alone, so it is the same in all sentences and on all processes.
    """
    ids = torch.full(token_map.shape[1:], _NO_CLASS, dtype=torch.long, device=token_map.device)
    if is_class_list:
        for name, is_own in zip(prompt.names, token_map):
            digest = hashlib.sha256(clean_name(name).casefold().encode()).digest()
            ids[is_own] = int.from_bytes(digest[:7], 'big')
    return ids


def _mask_truth(sample: DetDataSample, prompt: Prompt, token_map: Tensor) -> MaskTruth | None:
    """What the mask head learns from an image."""
    truth = sample.gt_instances
    if 'masks' not in truth:
        return None
    here, entities = named_boxes(sample, prompt)
    tokens = token_map[torch.tensor(entities, dtype=torch.long, device=token_map.device)]
    return MaskTruth(truth.bboxes[here].to(torch.float32), tokens, truth.masks[here])


def _word_ids(lesson: Lesson, samples: Sequence[DetDataSample]) -> Tensor:
    """The class of each token of B sentences, [B, L]; see ``class_ids``."""
    entries = zip(lesson.prompts, lesson.token_maps, samples)
    return torch.stack(
        [class_ids(prompt, token_map, is_list(sample)) for prompt, token_map, sample in entries]
    )


def _padded_tokens(truths: Sequence[Truth]) -> Tensor:
    """Tokens of the boxes of B images, [B, G, L] with G of the image that has most, at least 1."""
    most = max(1, *(len(truth.tokens) for truth in truths))
    tokens = truths[0].tokens.new_zeros(len(truths), most, truths[0].tokens.shape[1])
    for own, truth in zip(tokens, truths):
        own[: len(truth.tokens)] = truth.tokens
    return tokens
