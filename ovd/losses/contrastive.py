"""Contrastive losses between images and texts."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
