"""Transforms of image-caption pairs: augmentation, tokenised prompts, packing.

Random numbers come from the global generators, which ``ovd.RepeatableHook`` and ``ovd.CaptionShards`` seed
for each sample. Reading order: TimmAugment, CaptionPrompts, PackCaptions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.logging import MMLogger
from mmseg.structures import SegDataSample
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ...options import check_option
from ...registry import TRANSFORMS
from ...text.nouns import NounExtractor
from ...text.templates import PromptSet, Templates, expand, get_templates

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
_TOKENIZER_CACHE = 1 << 20


@TRANSFORMS.register_module()
class TimmAugment(BaseTransform):
    """timm's training augmentation: random resized crop, flip, RandAugment and random erasing.

    ``img``, uint8 [H, W, 3] BGR, becomes uint8 [size, size, 3] BGR; ``img_shape`` is updated. Erased pixels
    are noise that is standard normal after normalisation, clipped to 0..255.

    Args:
        size: side of the result in pixels.
        scale: range of the crop's share of the area.
        ratio: range of the crop's aspect ratio, width / height.
        flip_prob: probability of a horizontal flip.
        auto_augment: name of one of timm's policies, or None.
        interpolation: 'bilinear', 'bicubic' or 'random' (one of these).
        erase_prob: probability of erasing a rectangle.
        mean, std: RGB statistics, 0..255, of the model's preprocessing; the mean fills pixels from outside
            the image.

    Source: the released GroupViT recipe, timm's ``create_transform`` with these values. As there, the
        configured colour jitter has no effect, because timm skips it if RandAugment is used.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_prob: float = 0.5,
        auto_augment: str | None = 'rand-m9-mstd0.5-inc1',
        interpolation: str = 'bilinear',
        erase_prob: float = 0.25,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.augment = create_transform(
            (3, size, size),
            is_training=True,
            scale=tuple(scale),
            ratio=tuple(ratio),
            hflip=flip_prob,
            color_jitter=None,
            auto_augment=auto_augment,
            interpolation=interpolation,
            mean=tuple(value / 255 for value in mean),
            re_prob=0.0,
            normalize=False,
        )
        self.erase = RandomErasing(erase_prob, mode='pixel', max_count=1, device='cpu')
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        rgb = np.ascontiguousarray(results['img'][..., ::-1])
        image = self._erased(self.augment(Image.fromarray(rgb)))
        results['img'] = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())
        results['img_shape'] = results['img'].shape[:2]
        return results

    def _erased(self, image: Tensor) -> Tensor:
        """Replace a random rectangle of uint8 RGB [3, size, size] by noise, with ``erase_prob``."""
        noise = self.erase(torch.full(image.shape, torch.nan))
        values = (noise * self.std + self.mean).round().clamp(0, 255)
        return torch.where(noise.isnan(), image, values.nan_to_num().to(torch.uint8))


@TRANSFORMS.register_module()
class CaptionPrompts(BaseTransform):
    """Draw noun prompts from ``caption`` and tokenise both.

    Adds ``token_ids``, int64 [1 + K, L], the caption first, with K = count and L = context_length;
    ``noun_mask``, bool [K], False for padding (the caption itself, if it has fewer than K nouns); and
    ``noun_ids``, int64 [K], equal for equal nouns (classes of the vocabulary, or case-folded words), -1 for
    padding.

    Up to K nouns are drawn without replacement, each with a random template. A text of more than L tokens is
    truncated, except for its end token.

    Args:
        count: K.
        templates: see ``ovd.text.templates.get_templates``.
        nouns: arguments of ``NounExtractor``; unused if count is 0.
        nouns_of: 'caption', or 'all_captions' of the image.
        repeats: whether a noun that occurs twice can be drawn twice.
        context_length: L, including start and end token.

    Source: Xu et al., CVPR 2022, Sec. 3.3; padding with the caption and the mixture of nouns and verbs as in
        the released code.
    """

    def __init__(
        self,
        count: int = 3,
        templates: Templates = 'clip80',
        nouns: Mapping[str, Any] | None = None,
        nouns_of: str = 'caption',
        repeats: bool = True,
        context_length: int = 77,
    ) -> None:
        check_option('nouns_of', nouns_of, ('caption', 'all_captions'))
        self.count = count
        self.nouns_of = nouns_of
        self.repeats = repeats
        prompts = get_templates(templates)
        self.templates = [PromptSet('custom', (text,), prompts.spelling) for text in prompts.templates]
        self.extractor = NounExtractor(**(nouns or {})) if count else None
        self.tokenizer = SimpleTokenizer(context_length=context_length)
        self._truncation_logged = False

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        caption = results['caption']
        nouns = self._draw_nouns([caption] if self.nouns_of == 'caption' else results['captions'])
        drawn = np.random.randint(len(self.templates), size=len(nouns))  # noqa: NPY002
        prompts = [expand(text, self.templates[index])[0] for (text, _), index in zip(nouns, drawn)]
        padding = self.count - len(nouns)
        results['token_ids'] = self.tokenize([caption, *prompts, *[caption] * padding])
        results['noun_mask'] = torch.tensor([True] * len(nouns) + [False] * padding, dtype=torch.bool)
        ids = [noun_id(key) for _, key in nouns]
        results['noun_ids'] = torch.tensor(ids + [-1] * padding, dtype=torch.int64)
        return results

    def tokenize(self, texts: list[str]) -> Tensor:
        """Tokenise T texts: int64 [T, L]."""
        if len(self.tokenizer.cache) > _TOKENIZER_CACHE:  # it would grow without limit
            self.tokenizer.cache = {word: word for word in ('<start_of_text>', '<end_of_text>')}
        token_ids: Tensor = self.tokenizer(texts)
        if not self._truncation_logged:
            full = token_ids[:, -1].nonzero().flatten().tolist()
            long = [texts[i] for i in full if len(self.tokenizer.encode(texts[i])) + 2 > token_ids.shape[1]]
            if long:
                self._truncation_logged = True
                MMLogger.get_current_instance().warning(
                    f'truncated a caption of more than {token_ids.shape[1]} tokens (logged once): '
                    f'{long[0]!r:.80}'
                )
        return token_ids

    def _draw_nouns(self, captions: Sequence[str]) -> list[tuple[str, str]]:
        """Draw up to K nouns: (text, key), where equal nouns have equal keys."""
        if self.extractor is None:
            return []
        nouns = [noun for caption in captions for noun in self.extractor.extract(caption)]
        pairs = [(noun.text, self.extractor.key(noun)) for noun in nouns]
        if not self.repeats:
            pairs = list({key: (text, key) for text, key in reversed(pairs)}.values())
        return [pairs[index] for index in np.random.permutation(len(pairs))[: self.count]]  # noqa: NPY002


def noun_id(noun: str) -> int:
    """Hash of a noun, equal in all processes; below 2^56."""
    return int.from_bytes(hashlib.blake2b(noun.encode(), digest_size=7).digest(), 'big')


@TRANSFORMS.register_module()
class PackCaptions(BaseTransform):
    """Pack a training sample of ``ovd.GroupViT``; needs :class:`CaptionPrompts` before it.

    Returns ``inputs``, uint8 [3, H, W] BGR, and ``data_samples``, a ``SegDataSample`` with ``token_ids``,
    ``noun_mask`` and ``noun_ids``, and the ``meta_keys`` as metainfo.
    """

    def __init__(
        self, meta_keys: Sequence[str] = ('img_id', 'img_path', 'caption', 'ori_shape', 'img_shape')
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        sample = SegDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        for key in ('token_ids', 'noun_mask', 'noun_ids'):
            sample.set_field(results[key], key)
        image = torch.from_numpy(np.ascontiguousarray(results['img'].transpose(2, 0, 1)))
        return {'inputs': image, 'data_samples': sample}
