"""Contrastive losses between images and texts.

Reading order: image_text_loss, uniformity_loss (one process); caption_loss, MultiLabelLoss (the batch of all
processes, see ``gather``).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gather import gather_rows, joint_mean, joint_rows


def image_text_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, texts_of_images: Tensor, logit_scale: Tensor
) -> Tensor:
    """CLIP's symmetric InfoNCE for a batch in which several images may share a text.

    Each image picks its text among the T different ones; each text spreads its probability evenly over the
    images it belongs to. With B different texts this is CLIP's loss.

    Args:
        image_embeddings: [B, D], unit length.
        text_embeddings: [T, D], unit length, of the different texts; each belongs to some image.
        texts_of_images: [B] int64, index of each image's text.
        logit_scale: scalar, log of the multiplier.
    Returns:
        Scalar, mean of the two directions.
    Raises:
        ValueError: shapes that do not fit; a text that belongs to no image.

    Source: Radford et al., ICML 2021, Sec. 2.3; equal texts merged as in UniCL (Yang et al., CVPR 2022).
    """
    images, texts = len(image_embeddings), len(text_embeddings)
    if texts_of_images.shape != (images,):
        raise ValueError(
            f'expected one text index for each of {images} images, got {tuple(texts_of_images.shape)}'
        )
    counts = torch.bincount(texts_of_images, minlength=texts)
    if len(counts) > texts or not counts.all():
        raise ValueError(f'the {texts} texts are used {counts.tolist()} times, expected each at least once')
    logits = logit_scale.exp() * image_embeddings @ text_embeddings.T
    of_image = F.cross_entropy(logits, texts_of_images)
    log_probs = logits.log_softmax(dim=0).gather(1, texts_of_images[:, None])[:, 0]
    of_text = -(log_probs / counts[texts_of_images]).sum() / texts
    return (of_image + of_text) / 2


def uniformity_loss(embeddings: Tensor, sharpness: float = 2.0) -> Tensor:
    """Log of the mean Gaussian similarity over all pairs; lowest when the vectors spread over the sphere.

    Args:
        embeddings: [N, D], unit length; N < 2 gives zero.
        sharpness: t of exp(-t * squared distance).

    Source: Wang and Isola, ICML 2020, Sec. 4.1.
    """
    if len(embeddings) < 2:
        return embeddings.sum() * 0
    pairs = torch.ones(len(embeddings), len(embeddings), dtype=torch.bool, device=embeddings.device).triu(1)
    similarities = (embeddings @ embeddings.T)[pairs]
    return (2 * sharpness * (similarities - 1)).logsumexp(0) - torch.log(pairs.sum())


def caption_loss(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE of b image-caption pairs among the pairs of all processes; float32.

    Args:
        image_embeddings, text_embeddings: [b, D], unit length; row i of both is a pair.
        logit_scale: scalar, log of the multiplier.
    Returns:
        Scalar, mean of the two directions; equal captions count as negatives of each other.
    Raises:
        ValueError: shapes that do not fit.

    Source: Radford et al., ICML 2021, Sec. 2.3; the gather passes gradients, as in GroupViT.
    """
    if image_embeddings.shape != text_embeddings.shape or image_embeddings.dim() != 2:
        raise ValueError(
            f'expected pairs [b, D], got images {tuple(image_embeddings.shape)} '
            f'and texts {tuple(text_embeddings.shape)}'
        )
    with torch.autocast(image_embeddings.device.type, enabled=False):
        images, texts = image_embeddings.float(), text_embeddings.float()
        place = joint_rows(len(images), images.device)
        labels = torch.arange(len(images), device=images.device) + place.start
        scale = logit_scale.float().exp()
        of_image = scale * images @ gather_rows(texts, place).T
        of_text = scale * texts @ gather_rows(images, place).T
        rows = F.cross_entropy(of_image, labels, reduction='none')
        rows = rows + F.cross_entropy(of_text, labels, reduction='none')
        return joint_mean(rows) / 2


class MultiLabelLoss(nn.Module):
    """Images against the prompts of the nouns in their captions, N for each image, in both directions.

    Args:
        weight: of the loss.
        formula: 'mean_of_logs': an image spreads its target evenly over its prompts, mean of the two
            directions (the released code); 'log_of_sum': it may split its probability over them as it
            likes, sum of the two directions (the paper).
        fillers: where a caption has fewer than N nouns, what to do with the captions that fill up its rows:
            'prompts' treats them as prompts (the released code), 'ignored' leaves them out.
        same_noun: what a prompt with a noun of the image is when it belongs to another image: 'negative' (the
            released code), 'positive' or 'ignored'.

    Source: Xu et al., GroupViT, CVPR 2022, Sec. 3.2, eq. 9-11.
    """

    def __init__(
        self,
        weight: float = 1.0,
        formula: str = 'mean_of_logs',
        fillers: str = 'prompts',
        same_noun: str = 'negative',
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ('formula', formula, ('mean_of_logs', 'log_of_sum')),
            ('fillers', fillers, ('prompts', 'ignored')),
            ('same_noun', same_noun, ('negative', 'positive', 'ignored')),
        ):
            if value not in choices:
                raise ValueError(f'{name} of the multi-label loss is {value!r}, expected one of {choices}')
        self.weight = weight
        self.is_log_of_sum = formula == 'log_of_sum'
        self.ignores_fillers = fillers == 'ignored'
        self.same_noun = same_noun

    def forward(
        self,
        image_embeddings: Tensor,
        prompt_embeddings: Tensor,
        logit_scale: Tensor,
        noun_mask: Tensor | None = None,
        noun_ids: Tensor | None = None,
    ) -> Tensor:
        """Loss of this process's images among the prompts of all processes; scalar, float32.

        Args:
            image_embeddings: [b, D], unit length.
            prompt_embeddings: [b, N, D], unit length.
            logit_scale: scalar, log of the multiplier.
            noun_mask: [b, N] bool, False marks a filler; needed where fillers are ignored.
            noun_ids: [b, N] int64, equal for equal nouns, negative for fillers; needed unless the same noun
                elsewhere is a negative.
        Raises:
            ValueError: shapes that do not fit, or something needed is missing.
        """
        count, per_image = self._check(image_embeddings, prompt_embeddings, noun_mask, noun_ids)
        with torch.autocast(image_embeddings.device.type, enabled=False):
            images, prompts = image_embeddings.float(), prompt_embeddings.float()
            place = joint_rows(count, images.device)
            scale = logit_scale.float().exp()
            all_images, all_prompts = gather_rows(images, place), gather_rows(prompts, place)
            of_image = scale * images @ all_prompts.flatten(0, 1).T
            of_prompt = scale * prompts.flatten(0, 1) @ all_images.T

            own = torch.arange(count, device=images.device)[:, None] + place.start
            owners = torch.arange(place.total, device=images.device)
            of_image_own = own == owners.repeat_interleave(per_image)
            of_prompt_own = own.repeat_interleave(per_image, 0) == owners
            of_image_same, of_prompt_same = None, None
            if noun_ids is not None and self.same_noun != 'negative':
                all_ids = gather_rows(noun_ids, place)
                is_same = _shares_noun(noun_ids, all_ids.flatten()[:, None])
                of_image_same = is_same & ~of_image_own
                is_same = _shares_noun(noun_ids.flatten()[:, None], all_ids)
                of_prompt_same = is_same & ~of_prompt_own
            valid = all_valid = None
            if noun_mask is not None and self.ignores_fillers:
                valid, all_valid = noun_mask.flatten(), gather_rows(noun_mask.long(), place).bool().flatten()
            images_loss = self._direction(of_image, of_image_own, of_image_same, columns=all_valid)
            prompts_loss = self._direction(of_prompt, of_prompt_own, of_prompt_same, rows=valid)
        total = joint_mean(images_loss) + joint_mean(prompts_loss)
        return self.weight * (total if self.is_log_of_sum else total / 2)

    def _direction(
        self,
        logits: Tensor,
        positives: Tensor,
        same: Tensor | None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of the rows of ``logits`` [R, M] that have a target; of at most R values.

        Args:
            positives: [R, M] bool, the targets.
            same: [R, M] bool, where another image's prompt has the same noun.
            rows, columns: [R] and [M] bool, False leaves one out.
        """
        excluded = torch.zeros_like(positives) if columns is None else (~columns).expand_as(positives)
        if same is not None and self.same_noun == 'positive':
            positives = positives | same
        elif same is not None:
            excluded = excluded | same
        positives = positives & ~excluded
        kept = positives.any(1) if rows is None else positives.any(1) & rows
        logits, positives = logits.masked_fill(excluded, float('-inf'))[kept], positives[kept]
        everything = logits.logsumexp(1)
        if self.is_log_of_sum:
            return everything - logits.masked_fill(~positives, float('-inf')).logsumexp(1)
        return everything - logits.masked_fill(~positives, 0.0).sum(1) / positives.sum(1)

    def _check(
        self, images: Tensor, prompts: Tensor, noun_mask: Tensor | None, noun_ids: Tensor | None
    ) -> tuple[int, int]:
        """b and N, once everything fits."""
        if prompts.dim() != 3 or images.shape != (len(prompts), prompts.shape[-1]):
            raise ValueError(
                f'expected images [b, D] and prompts [b, N, D], got {tuple(images.shape)} '
                f'and {tuple(prompts.shape)}'
            )
        needs = (
            ('noun_mask', noun_mask, self.ignores_fillers, "fillers='ignored'"),
            ('noun_ids', noun_ids, self.same_noun != 'negative', f'same_noun={self.same_noun!r}'),
        )
        for name, value, is_needed, option in needs:
            if is_needed and value is None:
                raise ValueError(
                    f'the multi-label loss with {option} needs {name}, and the samples have none'
                )
            if value is not None and value.shape != prompts.shape[:2]:
                raise ValueError(
                    f'{name} has shape {tuple(value.shape)}, expected {tuple(prompts.shape[:2])}'
                )
        return prompts.shape[0], prompts.shape[1]


def _shares_noun(ids: Tensor, others: Tensor) -> Tensor:
    """Whether a row of ids [R, m] has an id >= 0 of a row of others [M, n], [R, M] bool."""
    shared = torch.zeros(len(ids), len(others), dtype=torch.bool, device=ids.device)
    for one in ids.unbind(1):
        for other in others.unbind(1):
            shared |= (one[:, None] == other) & (one >= 0)[:, None]
    return shared
