"""GLIPv2: GLIP that also tells regions of different images apart, guesses hidden words, and draws masks.

Source: Zhang et al., "GLIPv2: Unifying Localization and Vision-Language Understanding", NeurIPS 2022. The
authors released neither code nor weights under this name; the three parts are in the code of GLIP.
Reading order: GLIPv2.loss; the parts are in region_word_loss.py, masked_language.py and mask_head.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ...datasets.grounding.training_prompts import NO_CLASS, TrainingPrompt
from ...encoders.tokens.prompt_features import PromptBatch, PromptFeatures
from ...encoders.tokens.token_encoder import pad_ids
from ...layers.gather import joint_mean
from ...registry import MODELS
from .detector import GLIP
from .head import HeadOutputs, ImageTargets
from .mask_head import MaskTargets, TextMaskHead
from .masked_language import HiddenTokens, LanguageHead
from .region_word_loss import RegionWordContrast
from .training_targets import TrainingTargets, pad_rows


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
            tokenizer = self.text.tokenizer
            if tokenizer.mask_id is None:
                raise ValueError(
                    f'masked language modelling needs a text encoder with a mask token, '
                    f'{type(self.text).__name__} has none'
                )
            self.language = LanguageHead(width, tokenizer.vocab_size, tokenizer.mask_id, **language)
        if self.contrast is not None or self.language is not None:
            self.sample_keys = (*self.sample_keys, 'caption_ranges')
        self._restrict(trainable)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of a batch; see ``GLIP``."""
        head = self.bbox_head
        prompts, instances = self._training_samples(batch_data_samples)
        hidden = self._hide(prompts)
        targets = self._targets(prompts, instances, None if hidden is None else hidden.ids)
        maps = self.extract_feat(batch_inputs)
        fused, tokens = head.tower(maps, targets.text)
        outputs = head.align(fused, tokens)
        assigned_boxes = head.assigned_boxes(outputs.sizes, targets.images)
        losses = head.loss(outputs, targets.counted, targets.images, assigned_boxes)
        length, device = tokens.shape[1], tokens.device
        if self.contrast is not None:
            features = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
            losses['loss_contrast'] = self.contrast(
                features,
                targets.text.embedded,
                targets.counted,
                assigned_boxes,
                _padded_tokens(targets.images),
                pad_rows([prompt.class_ids for prompt in prompts], length, device, NO_CLASS),
            )
        if self.language is not None and hidden is not None:
            rows = self.language.token_losses(tokens, hidden.labels.to(device))
            losses['loss_language'] = self.language.weight * joint_mean(rows)
        if self.mask_head is not None:
            regions = self._training_regions(outputs, targets, batch_data_samples)
            mask_targets = [
                _mask_targets(boxes, pad_rows([prompt.positive_map], length, device)[0])
                for boxes, prompt in zip(instances, prompts)
            ]
            losses['loss_mask'] = self.mask_head.loss(fused, tokens, mask_targets, regions)
        return losses

    @torch.no_grad()
    def _training_regions(
        self, outputs: HeadOutputs, targets: TrainingTargets, samples: Sequence[DetDataSample]
    ) -> list[Tensor]:
        """Boxes that the model detects itself, per image [D, 4], in the frame of the input."""
        length, device = outputs.logits.shape[2], outputs.logits.device
        maps = [pad_rows([prompt.token_map], length, device)[0] for prompt in targets.prompts]
        labels = [prompt.prompt.labels for prompt in targets.prompts]
        metainfos = [sample.metainfo for sample in samples]
        found = self.bbox_head.predict(outputs, maps, labels, metainfos, self.test_cfg, rescale=False)
        return [instances.bboxes for instances in found]

    def _hide(self, prompts: Sequence[TrainingPrompt]) -> HiddenTokens | None:
        """Token ids of the prompts with some of them hidden, on the CPU; None without this objective."""
        if self.language is None:
            return None
        ids, mask = pad_ids([prompt.prompt.token_ids for prompt in prompts], self.text.tokenizer.pad_id)
        may_hide = torch.zeros_like(mask)
        for row, prompt in zip(may_hide, prompts):
            chosen = prompt.describes_image
            if self.language.spare_phrases:
                chosen = chosen & ~prompt.token_map.any(0)
            row[: len(chosen)] = torch.from_numpy(chosen)
        return self.language.hide(ids, may_hide)

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


def _mask_targets(instances: InstanceData, tokens: Tensor) -> MaskTargets | None:
    """Targets of the mask head for an image, None if it has no masks."""
    if 'masks' not in instances:
        return None
    return MaskTargets(instances.bboxes.to(torch.float32), tokens, instances.masks)


def _padded_tokens(images: Sequence[ImageTargets]) -> Tensor:
    """Tokens of the boxes of B images, [B, G, L] with G of the image that has most, at least 1."""
    most = max(1, *(len(image.tokens) for image in images))
    tokens = images[0].tokens.new_zeros(len(images), most, images[0].tokens.shape[1])
    for row, image in zip(tokens, images):
        row[: len(image.tokens)] = image.tokens
    return tokens
