"""LabelTower: any image classifier and any sentence encoder make an open-vocabulary model.

An image becomes the mean of the sentence vectors of its most probable labels, weighted by their
probabilities; words are sentence vectors too, so the two can be compared. Nothing is trained, and nothing is
known of images but what the labels of the classifier tell.

Source: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings" (ConSE), ICLR 2014,
Eq. 4; the idea of a classifier and word vectors is DeViSE's, Frome et al., NeurIPS 2013.
Reading order: load_label_tower, LabelTower (images), SentenceWords (words), combine.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...files import sha256_json, sha256_tensors
from ...text.templates import expand, get_templates
from ..tokens.bert_tokens import BertText
from .classifier import Classifier
from .photos_extra import imagenet_labels, sentence_folder


def load_label_tower(
    classifier: Mapping[str, Any] | None = None,
    sentences: str | None = None,
    labels: Sequence[str] | None = None,
    label_template: str = 'a photo of a {}',
    top_k: int = 30,
) -> 'LabelTower':
    """A tower of two halves, shared by all who ask for the same.

    Args:
        classifier: arguments of ``Classifier``; by default EfficientNet-Lite0 of the extra ``ovd[photos]``.
        sentences: folder of a BERT whose mean token is a sentence vector; by default the MiniLM of the extra.
        labels: names of the classifier's outputs in their order, by default those of ImageNet-1k.
        label_template: holds one ``{}``; labels are encoded in it. Words should come in a like sentence.
        top_k: T, labels that make up the vector of an image.
    Raises:
        ImportError: a default is asked for and the extra is not installed.
        ValueError: labels and outputs of the classifier differ in number.
    """
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (classifier or {}).items()
    }
    return _load(
        tuple(sorted(options.items())),
        sentences,
        None if labels is None else tuple(labels),
        label_template,
        top_k,
    )


class LabelTower(nn.Module):
    """The image half; has the interface of ``ImageEncoder``. Frozen, in eval mode.

    Args:
        classifier: images -> logits [N, L].
        text: the other half.
        labels: L names.
        label_template, top_k: see ``load_label_tower``.
    """

    def __init__(
        self,
        classifier: Classifier,
        text: 'SentenceWords',
        labels: Sequence[str],
        label_template: str = 'a photo of a {}',
        top_k: int = 30,
    ) -> None:
        super().__init__()
        if len(labels) != classifier.num_outputs:
            raise ValueError(
                f'{len(labels)} labels came with a classifier of {classifier.num_outputs} outputs: each '
                'output needs its name'
            )
        if not 1 <= top_k <= len(labels):
            raise ValueError(f'top_k must lie within 1 .. {len(labels)}, the number of labels, got {top_k}')
        self.classifier, self.text = classifier, text
        self.labels, self.top_k = tuple(labels), top_k
        self.image_size, self.mean = classifier.image_size, classifier.mean
        self.embed_dim = text.embed_dim
        template = get_templates([label_template])
        sentences = [sentence for label in labels for sentence in expand(label, template)]
        self.register_buffer(
            'label_embeddings', F.normalize(text.encode(sentences), dim=-1), persistent=False
        )
        self.label_embeddings: Tensor
        self.fingerprint = sha256_json(
            {
                'classifier': sha256_tensors(classifier.state_dict()),
                'text': text.encoder_fingerprint,
                'labels': list(sentences),
                'top_k': top_k,
                'pixels': [*classifier.mean, *classifier.std, classifier.image_size],
            }
        )[:16]
        text.fingerprint = self.fingerprint
        self.eval().requires_grad_(False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """RGB pixels [N, 3, S, S] in 0 .. 255 -> what ``encode`` takes."""
        return self.classifier.normalize(pixels)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> [N, D], not of unit length, float32; N may be 0."""
        if not len(pixels):
            return torch.zeros(0, self.embed_dim, device=pixels.device)
        return combine(self.classifier(pixels), self.label_embeddings, self.top_k)

    def train(self, mode: bool = True) -> 'LabelTower':
        """Stay in eval mode: both halves are frozen."""
        return super().train(False)


class SentenceWords(nn.Module):
    """The text half, a ``TextBackend``: the mean token of a BERT.

    Attributes:
        fingerprint: of the pair of halves, so that vectors of another classifier are refused.
    """

    dtype = torch.float32

    def __init__(self, sentences: BertText) -> None:
        super().__init__()
        self.sentences = sentences
        self.embed_dim = sentences.embed_dim
        self.encoder_fingerprint = self.fingerprint = sentences.fingerprint

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """T texts -> [T, D], not normalised, float32."""
        return self.sentences.encode(texts, batch_size)

    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T texts -> token features [T, L, D], float32, and token_mask [T, L], True = real token."""
        return self.sentences.encode_tokens(texts)


def combine(logits: Tensor, label_embeddings: Tensor, top_k: int) -> Tensor:
    """Sentence vectors of the most probable labels, weighted by their probabilities.

    Args:
        logits: [N, L].
        label_embeddings: [L, D], unit length.
        top_k: T.
    Returns:
        [N, D]: sum over the best T labels of p s, divided by the sum of p.
    """
    probs, best = logits.float().softmax(-1).topk(top_k, dim=-1)
    weights = probs / probs.sum(-1, keepdim=True)
    return torch.einsum('nt,ntd->nd', weights, label_embeddings[best])


@lru_cache(maxsize=2)
def _load(
    classifier: tuple[tuple[str, Any], ...],
    sentences: str | None,
    labels: tuple[str, ...] | None,
    label_template: str,
    top_k: int,
) -> LabelTower:
    bert = BertText(sentence_folder() if sentences is None else sentences, pretrained=True, frozen=True)
    bert.init_weights()
    names = imagenet_labels() if labels is None else labels
    return LabelTower(Classifier(**dict(classifier)), SentenceWords(bert), names, label_template, top_k)
