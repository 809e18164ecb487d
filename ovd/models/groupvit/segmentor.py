"""GroupViT: segmentation learned from captions alone, by grouping image patches.

Source: Xu et al., GroupViT: Semantic Segmentation Emerges from Text Supervision, CVPR 2022; the released
model where it differs from the paper.
Reading order: GroupViT (``loss`` trains, ``score_maps`` segments), encoder.py (image encoder), grouping.py
(its grouping), readout.py (groups to pixels).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoders.loading import build_clip
from ...encoders.text_embeddings import TextEmbeddings
from ...encoders.text_encoder import TokenTower
from ...layers.contrastive import MultiLabelLoss, caption_loss
from ...layers.cosine_classifier import l2_normalize
from ...layers.geometry import pad_to_multiple
from ...layers.score_maps import ScoreMaps
from ...registry import MODELS
from ...text.templates import Templates
from ..segmentor import OpenVocabularySegmentor
from .group_batch import GroupBatch
from .grouping import GroupingOutput
from .model_text_encoder import ModelTextEncoder
from .projection_head import ProjectionHead
from .readout import GroupPredictions, SoftReadout, group_labels

_LONGEST = 8  # the longer side of a whole image is at most so many times ``presence_side``


@MODELS.register_module()
class GroupViT(OpenVocabularySegmentor):
    """Image encoder with grouping and text encoder, trained contrastively on image-caption pairs.

    The vocabulary is encoded by the model's text encoder, and again whenever its weights have changed.

    Args:
        image_encoder: module from images to a ``GroupingOutput``, with attributes ``dim`` and ``patch_size``.
        text_encoder: arguments of ``build_text_transformer`` to train from scratch, or of
            ``build_clip_text`` to start from a CLIP and its joint image-text space.
        embed_dim: D of the joint space; unused with a CLIP.
        hidden_dim: of the projection heads.
        image_projection: module from features [..., C] to the joint space, built with ``dim`` and
            ``embed_dim``; by default a ``ProjectionHead`` of ``hidden_dim``.
        temperature: inverse of the initial logit scale.
        max_logit_scale: upper bound of the logit scale.
        caption_weight: of the image-caption loss.
        multi_label: arguments of ``MultiLabelLoss``, and ``share_scale`` to use the logit scale of the
            caption loss; None: no multi-label loss.
        background: learn a background embedding [D] for pooling, objectives and readout.
        pooling: module from a ``GroupBatch`` to image embeddings [B, D]; by default the mean of the groups.
        objectives: modules from a ``GroupBatch`` to further losses.
        readout: from groups to pixels, see readout.py.
        size_divisor: images are padded on the right and below to a multiple of it; by default the patch size.
            With 1, incomplete patches at the border are ignored, as in the released evaluation.
        text: arguments of ``TextSource`` except ``encoder``; by default prompts are averaged before
            normalisation.
        test_cfg: see ``OpenVocabularySegmentor``; ``keep_groups`` adds ``pred_groups``, the final group of
            every pixel of the whole image, by the assignments of the readout.
        **kwargs: of ``OpenVocabularySegmentor``.
    """

    groups_pixels = True

    def __init__(
        self,
        image_encoder: Mapping[str, Any],
        text_encoder: Mapping[str, Any],
        embed_dim: int = 256,
        hidden_dim: int = 4096,
        image_projection: Mapping[str, Any] | None = None,
        temperature: float = 0.07,
        max_logit_scale: float = 100.0,
        caption_weight: float = 1.0,
        multi_label: Mapping[str, Any] | None = None,
        background: bool = False,
        pooling: Mapping[str, Any] | None = None,
        objectives: Sequence[Mapping[str, Any]] = (),
        readout: Mapping[str, Any] | None = None,
        size_divisor: int | None = None,
        text: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if text and 'encoder' in text:
            raise ValueError(f'GroupViT uses its own text encoder: remove text.encoder={text["encoder"]!r}')
        own_text = ModelTextEncoder(self)
        defaults = {'templates': 'a photo of a {}.', 'normalize_each': False}
        super().__init__(text={**defaults, **(text or {}), 'encoder': own_text}, **kwargs)
        self.own_text = own_text
        self.image_encoder = MODELS.build(image_encoder)
        if 'clip' in text_encoder:
            self.text_encoder, self.text_settings, embed_dim = build_clip_text(**text_encoder)
        else:
            self.text_encoder, self.text_settings = build_text_transformer(**text_encoder)
            width = self.text_encoder.ln_final.normalized_shape[0]
            self.text_encoder.text_projection = ProjectionHead(width, embed_dim, hidden_dim)
        self.embed_dim = embed_dim
        head = {'type': 'ovd.ProjectionHead', 'hidden_dim': hidden_dim, **(image_projection or {})}
        self.image_projection = MODELS.build({**head, 'dim': self.image_encoder.dim, 'embed_dim': embed_dim})
        self.size_divisor = size_divisor or self.image_encoder.patch_size
        self.max_logit_scale = math.log(max_logit_scale)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.caption_weight = caption_weight
        self.multi_label_loss: MultiLabelLoss | None = None
        self.multi_label_logit_scale: nn.Parameter | None = None
        if multi_label is not None:
            options = dict(multi_label)
            if not options.pop('share_scale', False):
                self.multi_label_logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
            self.multi_label_loss = MultiLabelLoss(**options)
        self.background = nn.Parameter(0.1 * torch.randn(embed_dim)) if background else None
        self.pooling = None if pooling is None else MODELS.build(pooling)
        self.objectives = nn.ModuleList(MODELS.build(objective) for objective in objectives)
        self.readout = MODELS.build(readout or {'type': 'ovd.SoftReadout'})
        rivals = self.readout.background if isinstance(self.readout, SoftReadout) else None
        if rivals is not None and rivals.learned and not background:
            raise ValueError('readout.background.learned=True needs a model with background=True')
        self._templates: Any = None

    # --- the two towers ---------------------------------------------------------------------------------

    def encode_image(self, inputs: Tensor) -> GroupingOutput:
        """Preprocessed images [B, 3, H, W] -> groups, not yet in the joint space."""
        return self.image_encoder(inputs)

    def project_image(self, features: Tensor) -> Tensor:
        """Features of groups or images [..., C] -> [..., D], not normalised."""
        return self.image_projection(features)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """token_ids [T, L] -> [T, D], not normalised.

        Duplicates are encoded once and padding after the longest text is cut; the result is unchanged.

        Raises:
            ValueError: texts longer than the context of the text encoder.
        """
        context = len(self.text_encoder.positional_embedding)
        if token_ids.shape[1] > context:
            raise ValueError(
                f'texts have {token_ids.shape[1]} tokens, the text encoder reads {context}: set '
                f'context_length={context} in ovd.CaptionPrompts'
            )
        distinct, rows = token_ids.unique(dim=0, return_inverse=True)
        distinct = distinct[:, : int(self.text_encoder.needed_lengths(distinct).max())]
        return self.text_encoder.project(self.text_encoder.pool(distinct)[rows])

    # --- training ---------------------------------------------------------------------------------------

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Contrastive losses of image-caption pairs, and statistics of nouns and groups.

        Args:
            inputs: [B, 3, H, W].
            data_samples: B samples with ``token_ids`` int64 [1 + N, L], the caption first, then N prompts of
                its nouns; ``noun_mask`` bool [N], False for padding; ``noun_ids`` int64 [N] if the options of
                the multi-label loss require them.
        Returns:
            the losses; 'nouns', mean number of noun prompts per image; and ``monitors``.
        """
        with torch.no_grad():
            for scale in (self.logit_scale, self.multi_label_logit_scale):
                if scale is not None:
                    scale.clamp_(max=self.max_logit_scale)
        token_ids = torch.stack([sample.token_ids for sample in data_samples])
        if self.multi_label_loss is None:
            token_ids = token_ids if self.objectives else token_ids[:, :1]
        elif token_ids.shape[1] < 2:
            raise ValueError('multi_label requires noun prompts, token_ids have only captions')
        output = self.encode_image(inputs)
        texts = l2_normalize(self.encode_text(token_ids.flatten(0, 1))).unflatten(0, token_ids.shape[:2])
        batch = replace(self.group_batch(output), text_embeddings=texts, samples=data_samples)
        images = batch.image_embeddings
        losses = {'loss_caption': self.caption_weight * caption_loss(images, texts[:, 0], self.logit_scale)}
        if self.multi_label_loss is not None:
            scale = self.logit_scale if self.multi_label_logit_scale is None else self.multi_label_logit_scale
            nouns = (stacked(data_samples, name) for name in ('noun_mask', 'noun_ids'))
            losses['loss_multi_label'] = self.multi_label_loss(images, texts[:, 1:], scale, *nouns)
        for objective in self.objectives:
            losses.update(objective(batch))
        noun_mask = stacked(data_samples, 'noun_mask')
        if noun_mask is not None and noun_mask.shape[1]:
            losses['nouns'] = noun_mask.sum(1, dtype=torch.float32).mean()
        return losses | self.monitors(output)

    def group_batch(self, output: GroupingOutput) -> GroupBatch:
        """Project images into the joint space; inputs of objectives and pooling."""
        scale = self.logit_scale.clamp(max=self.max_logit_scale).exp()
        background = None if self.background is None else l2_normalize(self.background)
        images = l2_normalize(self.project_image(output.pooled))
        batch = GroupBatch(output, images, self.project_image, scale, background)
        return batch if self.pooling is None else replace(batch, image_embeddings=self.pooling(batch))

    @torch.no_grad()
    def monitors(self, output: GroupingOutput) -> dict[str, Tensor]:
        """Statistics of a training batch; collapse shows as entropy near 0 and empty groups near 1.

        Returns:
            'scale'; for each grouping i 'group_entropy_i', the normalised entropy of segments over groups (1:
            all groups of equal size), and 'empty_groups_i', the share of groups without segments.
        """
        figures = {'scale': self.logit_scale.exp()}
        for i, hard in enumerate(output.hard):
            members = hard.sum(-1)
            entropy = torch.special.entr(members / members.sum(-1, keepdim=True)).sum(-1).mean()
            figures[f'group_entropy_{i}'] = entropy / math.log(max(members.shape[-1], 2))
            figures[f'empty_groups_{i}'] = (members < 0.5).float().mean()
        return figures

    # --- segmentation -----------------------------------------------------------------------------------

    @property
    def with_background(self) -> bool:
        """Whether the readout has a background channel K."""
        return self.readout.with_background

    def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
        """Scores of preprocessed images [B, 3, H, W] at their size."""
        size = (inputs.shape[2], inputs.shape[3])
        predictions = self.group_predictions(inputs)
        return self.readout(predictions, size, context, background=self.use_background)

    def group_predictions(self, inputs: Tensor) -> GroupPredictions:
        """Preprocessed images [B, 3, H, W] -> their groups in the joint space."""
        batch = self.group_batch(self.encode_image(inputs))
        return GroupPredictions(
            batch.output,
            batch.group_embeddings,
            batch.image_embeddings,
            batch.scale,
            batch.background,
            batch.token_embeddings,
        )

    def image_context(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Tensor | None:
        """Class probabilities of the whole images [B, K], if the readout uses them."""
        side = self.readout.presence_side
        if side is None:
            return None
        self.prepare_text()
        height, width = inputs.shape[2:]
        scale = min(side / min(height, width), _LONGEST * side / max(height, width))
        size = tuple(self._whole_patches(scale * length) for length in (height, width))
        small = F.interpolate(inputs, size=size, mode='bilinear', align_corners=False, antialias=scale < 1)
        return self.readout.image_prior(self.group_predictions(small))

    def extract_feat(self, inputs: Tensor) -> GroupingOutput:
        """Same as ``encode_image``, for mmseg."""
        return self.encode_image(inputs)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Label every pixel; for samples with captions (``token_ids``), embed image and caption instead.

        Returns:
            the samples with predictions as in ``OpenVocabularySegmentor``, or with ``image_embeddings`` [D]
            and ``text_embeddings`` [D] of the caption, unit length.
        """
        if not data_samples or 'token_ids' not in data_samples[0]:
            return super().predict(inputs, data_samples)
        images = self.group_batch(self.encode_image(inputs)).image_embeddings
        texts = l2_normalize(self.encode_text(torch.stack([sample.token_ids[0] for sample in data_samples])))
        for sample, image, text in zip(data_samples, images, texts):
            sample.set_field(image, 'image_embeddings')
            sample.set_field(text, 'text_embeddings')
        return data_samples

    def set_test_cfg(self, test_cfg: Mapping[str, Any]) -> None:
        """Set the options of ``predict``."""
        options = dict(test_cfg)
        self.keep_groups = options.pop('keep_groups', False)
        super().set_test_cfg(options)

    def add_to_samples(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> None:
        """Add ``pred_groups``, int64 [1, H, W] at the original size, if ``keep_groups``."""
        if not self.keep_groups:
            return
        height, width = inputs.shape[2:]
        whole = pad_to_multiple(inputs, self.size_divisor)
        output = self.encode_image(whole)
        for index, sample in enumerate(data_samples):
            size = sample.metainfo.get('ori_shape', (height, width))[:2]
            alone = GroupingOutput(
                output.features[index : index + 1],
                output.pooled[index : index + 1],
                tuple(maps[index : index + 1] for maps in output.soft),
                tuple(maps[index : index + 1] for maps in output.hard),
                output.grid,
            )
            padded, choice = (whole.shape[2], whole.shape[3]), self.readout.assignment
            labels = group_labels(alone, padded, (height, width), size, assignment=choice)
            if sample.metainfo.get('flip'):
                labels = labels.flip(2 if sample.metainfo['flip_direction'] == 'horizontal' else 1)
            sample.pred_groups = PixelData(data=labels)

    def _whole_patches(self, length: float) -> int:
        patch = self.image_encoder.patch_size
        return max(1, round(length / patch)) * patch

    # --- text ------------------------------------------------------------------------------------------

    def prepare_text(self) -> None:
        """Encode the vocabulary unless it is encoded with the current weights."""
        super().prepare_text()
        current = self._encoded
        assert isinstance(current, TextEmbeddings)
        if current.encoder_fingerprint not in ('', self.own_text.fingerprint):
            self.set_vocabulary(current.vocabulary, self._templates)

    def set_vocabulary(self, vocabulary: Any, templates: 'Templates | None' = None) -> None:
        """Set the vocabulary; see ``OpenVocabularyModel``."""
        if isinstance(vocabulary, TextEmbeddings):
            templates = vocabulary.templates or None
        super().set_vocabulary(vocabulary, templates)
        self._templates = templates

    def use_text_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        """Pass class embeddings to the readout."""
        self.readout.use_text_embeddings(text_embeddings, self._source().embed, self.logit_scale.device)

    def train(self, mode: bool = True) -> 'GroupViT':
        """Switch mode and invalidate cached text embeddings."""
        self.text_changes += 1
        return super().train(mode)

    text_changes = 0

    def check_embeddings(self, text_embeddings: TextEmbeddings) -> None:
        if text_embeddings.encoder_fingerprint:
            text_embeddings.check_encoder(self.own_text.fingerprint)


def build_text_transformer(
    width: int = 256,
    heads: int = 4,
    layers: int = 12,
    context_length: int = 77,
    vocab_size: int = 49408,
    mlp_ratio: float = 4.0,
    with_checkpoint: bool = False,
) -> tuple[TokenTower, dict[str, Any]]:
    """CLIP's text transformer without projection, and its settings for the fingerprint.

    Args:
        with_checkpoint: recompute blocks in the backward pass to save memory.
    """
    transformer = TextTransformer(
        context_length=context_length,
        vocab_size=vocab_size,
        width=width,
        heads=heads,
        layers=layers,
        mlp_ratio=mlp_ratio,
        output_dim=0,
        act_layer=QuickGELU,
    )
    transformer.set_grad_checkpointing(with_checkpoint)
    return TokenTower(transformer), {'heads': heads, 'activation': 'quick_gelu'}


def build_clip_text(
    clip: str, pretrained: str | None = None, frozen: bool = False
) -> tuple[TokenTower, dict[str, Any], int]:
    """A CLIP's text tower with projection, its settings for the fingerprint, and D.

    Args:
        clip, pretrained: ``model`` and ``pretrained`` of ``build_clip``.
        frozen: exclude it from training.
    """
    loaded = build_clip(clip, pretrained)
    tower = TokenTower(getattr(loaded.model, 'text', loaded.model))
    tower.requires_grad_(not frozen)
    return tower, {'text_cfg': loaded.config['model_cfg']['text_cfg']}, loaded.embed_dim


def stacked(data_samples: Sequence[SegDataSample], name: str) -> Tensor | None:
    """Stack a field of all samples; None if they do not have it."""
    if name not in data_samples[0]:
        return None
    return torch.stack([sample.get(name) for sample in data_samples])
