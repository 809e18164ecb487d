"""Contrastive losses between images and texts.

Reading order: image_text_loss, uniformity_loss (one process); caption_loss, MultiLabelLoss (joint batch of
all processes, see gather.py).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..options import check_option
from .gather import gather_rows, joint_mean, joint_rows


def image_text_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, texts_of_images: Tensor, logit_scale: Tensor
) -> Tensor:
    """CLIP's symmetric InfoNCE for a batch in which several images may share a text.

    The target of an image is its text among the T distinct ones; the target of a text is uniform over its
    images. With T = B this is CLIP's loss.

    Args:
        image_embeddings: [B, D], unit length.
        text_embeddings: [T, D], unit length, of the distinct texts, each of which has an image.
        texts_of_images: [B] int64, index of each image's text.
        logit_scale: scalar, log of the multiplier.
    Returns:
        Scalar, mean of the two directions.

    Source: Radford et al., ICML 2021, Sec. 2.3; equal texts merged as in UniCL (Yang et al., CVPR 2022).
    """
    texts = len(text_embeddings)
    counts = torch.bincount(texts_of_images, minlength=texts)
    logits = logit_scale.exp() * image_embeddings @ text_embeddings.T
    of_image = F.cross_entropy(logits, texts_of_images)
    log_probs = logits.log_softmax(dim=0).gather(1, texts_of_images[:, None])[:, 0]
    of_text = -(log_probs / counts[texts_of_images]).sum() / texts
    return (of_image + of_text) / 2


def uniformity_loss(embeddings: Tensor, sharpness: float = 2.0) -> Tensor:
    """Log of the mean Gaussian similarity over all pairs; lowest for a uniform spread over the sphere.

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
        Scalar, mean of the two directions; equal captions are negatives of each other.

    Source: Radford et al., ICML 2021, Sec. 2.3; gradients pass through the gathering, as in GroupViT.
    """
    with torch.autocast(image_embeddings.device.type, enabled=False):
        images, texts = image_embeddings.float(), text_embeddings.float()
        joint = joint_rows(len(images), images.device)
        labels = torch.arange(len(images), device=images.device) + joint.start
        scale = logit_scale.float().exp()
        of_image = scale * images @ gather_rows(texts, joint).T
        of_text = scale * texts @ gather_rows(images, joint).T
        rows = F.cross_entropy(of_image, labels, reduction='none')
        rows = rows + F.cross_entropy(of_text, labels, reduction='none')
        return joint_mean(rows) / 2


class MultiLabelLoss(nn.Module):
    """Contrast images with the prompts of the nouns in their captions, N per image, in both directions.

    Args:
        weight: of the loss.
        formula: 'mean_of_logs': uniform target over the prompts of an image, mean of the two directions (the
            released code); 'log_of_sum': -log of their total probability, sum of the two directions (the
            paper).
        fillers: for a caption with fewer than N nouns, the padding prompts are kept as 'prompts' (the
            released code) or 'ignored'.
        same_noun: role of prompts of other images with a noun of this image: 'negative' (the released code),
            'positive' or 'ignored'.

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
        check_option('formula', formula, ('mean_of_logs', 'log_of_sum'))
        check_option('fillers', fillers, ('prompts', 'ignored'))
        check_option('same_noun', same_noun, ('negative', 'positive', 'ignored'))
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
            noun_mask: [b, N] bool, False for padding; required for ``fillers='ignored'``.
            noun_ids: [b, N] int64, equal for equal nouns, negative for padding; required unless
                ``same_noun='negative'``.
        Raises:
            ValueError: a required argument is missing.
        """
        if noun_mask is None and self.ignores_fillers:
            raise ValueError("fillers='ignored' requires samples with noun_mask")
        if noun_ids is None and self.same_noun != 'negative':
            raise ValueError(f'same_noun={self.same_noun!r} requires samples with noun_ids')
        count, per_image = prompt_embeddings.shape[:2]
        with torch.autocast(image_embeddings.device.type, enabled=False):
            images, prompts = image_embeddings.float(), prompt_embeddings.float()
            joint = joint_rows(count, images.device)
            scale = logit_scale.float().exp()
            all_images, all_prompts = gather_rows(images, joint), gather_rows(prompts, joint)
            of_image = scale * images @ all_prompts.flatten(0, 1).T
            of_prompt = scale * prompts.flatten(0, 1) @ all_images.T

            rows = torch.arange(count, device=images.device)[:, None] + joint.start
            columns = torch.arange(joint.total, device=images.device)
            of_image_own = rows == columns.repeat_interleave(per_image)
            of_prompt_own = rows.repeat_interleave(per_image, 0) == columns
            of_image_same, of_prompt_same = None, None
            if noun_ids is not None and self.same_noun != 'negative':
                all_ids = gather_rows(noun_ids, joint)
                is_same = _shares_noun(noun_ids, all_ids.flatten()[:, None])
                of_image_same = is_same & ~of_image_own
                is_same = _shares_noun(noun_ids.flatten()[:, None], all_ids)
                of_prompt_same = is_same & ~of_prompt_own
            valid = all_valid = None
            if noun_mask is not None and self.ignores_fillers:
                valid, all_valid = noun_mask.flatten(), gather_rows(noun_mask.long(), joint).bool().flatten()
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
        """Cross entropy of each row of ``logits`` [R, M] that has a target; at most R values.

        Args:
            positives: [R, M] bool, the targets.
            same: [R, M] bool, prompts of other images with the same noun.
            rows, columns: [R] and [M] bool, False excludes one.
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


def _shares_noun(ids: Tensor, others: Tensor) -> Tensor:
    """Whether row r of ids [R, m] and row s of others [M, n] share an id >= 0, [R, M] bool."""
    shared = torch.zeros(len(ids), len(others), dtype=torch.bool, device=ids.device)
    for one in ids.unbind(1):
        for other in others.unbind(1):
            shared |= (one[:, None] == other) & (one >= 0)[:, None]
    return shared
