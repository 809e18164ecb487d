"""CLIP pre-training: open_clip's towers as an mmengine model.

Source: Radford et al., ICML 2021. Reading order: CLIP (loss, predict), OpenClipFiles (reading and writing
open_clip folders).
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional as F

from ..encoders.loading import build_clip, save_clip
from ..encoders.text_encoder import TokenTower
from ..layers.contrastive import image_text_loss, uniformity_loss
from ..registry import HOOKS, MODELS
from ..text.templates import expand, get_templates
from ..text.vocabulary import Vocabulary


@MODELS.register_module()
class CLIP(BaseModel):
    """Image and text tower trained contrastively on image-caption pairs; classifies crops zero-shot.

    Args:
        model, pretrained: see ``ovd.encoders.loading.build_clip``; 'random:SEED' starts from scratch.
        text: ``vocabulary`` and ``templates`` of ``predict``.
        caption_templates: templates for training captions, one drawn per batch.
        style_odds: relative frequency of each caption style of the data set. A batch has one style and one
            template, so that equal contents have equal texts.
        uniformity_weight: of ``uniformity_loss`` of the texts.
        max_logit_scale: upper bound of the learned multiplier.
        channels_last: memory format of the image tower; faster for convolutions on a CPU.
    """

    clip: Any  # open_clip's module

    def __init__(
        self,
        model: str,
        pretrained: str,
        text: Mapping[str, Any],
        caption_templates: Sequence[str] = ('{}',),
        style_odds: Sequence[float] = (1.0,),
        uniformity_weight: float = 0.0,
        max_logit_scale: float = 100.0,
        channels_last: bool = True,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        loaded = build_clip(model, pretrained)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.clip = loaded.model.to(memory_format=self.memory_format)
        self.config = loaded.config
        self.tokenize = lru_cache(maxsize=1 << 14)(lambda text: loaded.tokenizer([text])[0])
        self.vocabulary = Vocabulary.parse(text['vocabulary'])
        self.templates = get_templates(text.get('templates', 'single'))
        self.caption_templates = [get_templates([template]) for template in caption_templates]
        self.style_odds = torch.tensor(style_odds, dtype=torch.float)
        self.uniformity_weight = uniformity_weight
        self.max_logit_scale = torch.tensor(max_logit_scale).log()
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(loaded, name)).view(3, 1, 1) * 255
            self.register_buffer(f'pixel_{name}', values, persistent=False)

    def forward(self, inputs: Sequence[Tensor], mode: str = 'tensor', **kwargs: Any) -> Any:
        """Dispatch for mmengine: 'loss' in training, 'predict' in evaluation, 'tensor' for embeddings.

        Args:
            inputs: uint8 RGB pictures, [3, size, size] each; for 'predict' [M, S, 3, size, size] each.
        """
        if mode == 'loss':
            return self.loss(torch.stack(list(inputs)), **kwargs)
        if mode == 'predict':
            return self.predict(inputs, **kwargs)
        return self.encode_images(torch.stack(list(inputs)))

    def loss(self, pixels: Tensor, captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Contrastive loss of pictures [B, 3, size, size] and, for each style, their B captions."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=self.max_logit_scale)
        style = int(torch.multinomial(self.style_odds, 1))
        template = self.caption_templates[int(torch.randint(len(self.caption_templates), ()))]
        texts = [expand(caption, template)[0] for caption in captions[style]]
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        text_embeddings = self.encode_texts(list(rows))
        texts_of_images = torch.tensor([rows[text] for text in texts], device=pixels.device)
        losses = {
            'loss_contrastive': image_text_loss(
                self.encode_images(pixels), text_embeddings, texts_of_images, self.clip.logit_scale
            ),
            'scale': self.clip.logit_scale.detach().exp(),
        }
        if self.uniformity_weight:
            losses['loss_uniformity'] = self.uniformity_weight * uniformity_loss(text_embeddings)
        return losses

    def predict(self, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> list[BaseDataElement]:
        """Classify the mean embedding of the S views of each region; one element per image.

        Returns:
            Elements with ``labels`` [M] as given, ``scores`` [M, K], and ``view_scores`` [M, K] of the first
            view alone.
        """
        text_embeddings = self.embed_vocabulary()
        sizes = [len(crops) for crops in inputs]
        views = torch.cat([crops.flatten(0, 1) for crops in inputs])
        embeddings = self.encode_images(views).unflatten(0, (sum(sizes), -1))
        scale = self.clip.logit_scale.exp()
        scores = scale * F.normalize(embeddings.mean(1), dim=-1) @ text_embeddings.T
        view_scores = scale * embeddings[:, 0] @ text_embeddings.T
        return [
            BaseDataElement(labels=label, scores=score, view_scores=view_score)
            for label, score, view_score in zip(labels, scores.split(sizes), view_scores.split(sizes))
        ]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, size, size] -> image_embeddings [B, D]."""
        normalized = (pixels - self.pixel_mean) / self.pixel_std
        return F.normalize(self.clip.visual(normalized.contiguous(memory_format=self.memory_format)), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> text_embeddings [T, D]."""
        tower = TokenTower(getattr(self.clip, 'text', self.clip))
        token_ids = torch.stack([self.tokenize(text) for text in texts])
        token_ids = token_ids[:, : int(tower.needed_lengths(token_ids).max())]
        return F.normalize(tower(token_ids.to(self.pixel_mean.device)), dim=-1)

    def embed_vocabulary(self) -> Tensor:
        """text_embeddings [K, D] of the vocabulary with the current weights, averaged over templates."""
        prompts = [prompt for name in self.vocabulary.names for prompt in expand(name, self.templates)]
        embeddings = self.encode_texts(prompts).unflatten(0, (len(self.vocabulary), -1))
        return F.normalize(embeddings.mean(1), dim=-1)


@HOOKS.register_module()
class OpenClipFiles(Hook):
    """Write the trained model as an open_clip folder; also load such weights as checkpoints.

    Args:
        folder: inside the work directory.
        dtype: of the stored weights.
    """

    def __init__(self, folder: str = 'clip', dtype: str = 'float16') -> None:
        self.folder = folder
        self.dtype = getattr(torch, dtype)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        tensors = checkpoint['state_dict']
        if not any(name.startswith('clip.') for name in tensors):
            checkpoint['state_dict'] = {f'clip.{name}': tensor for name, tensor in tensors.items()}

    def after_train(self, runner: Any) -> None:
        if is_main_process():
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            folder = Path(runner.work_dir) / self.folder
            save_clip(folder, model.clip, model.config, dtype=self.dtype)
            runner.logger.info(f'wrote the CLIP in the layout of open_clip to {os.fspath(folder)}')
