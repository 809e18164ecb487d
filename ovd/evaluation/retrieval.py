"""Image-text retrieval: recall at 1 in both directions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import METRICS
from .reporting_metric import ReportingMetric

_ROWS = 4096  # rows of the similarity matrix computed at once


@METRICS.register_module()
class RetrievalMetric(ReportingMetric):
    """Recall at 1 in both directions, over the whole set and within batches as in training.

    Samples have ``image_embeddings`` [D] and ``text_embeddings`` [D], unit length, and optionally the
    ``caption``: images with equal captions share one text, and all of them are correct for it. Metrics, with
    the prefix ``retrieval/``, in 0..1: ``image_to_text``, ``text_to_image`` and their mean ``R1``;
    ``batch_image_to_text``, ``batch_text_to_image`` and ``batch_R1`` within batches of ``batch_size``
    consecutive samples, independent of the data loader. Tied candidates share a hit, so that chance is one in
    the number of candidates. The report has ``metrics`` and ``protocol``.

    Args:
        batch_size: candidates per batch; an incomplete last batch is dropped, unless it is the only one.
        kwargs: see ``ReportingMetric``.
    """

    default_prefix = 'retrieval'

    def __init__(self, batch_size: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch_size = batch_size

    def check_dataset(self, dataset_meta: dict[str, Any]) -> None:
        """Accept data sets without classes."""

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Store (image embedding, text embedding, caption) of each sample."""
        for sample in data_samples:
            embeddings = (sample[key].float().cpu() for key in ('image_embeddings', 'text_embeddings'))
            self.results.append((*embeddings, sample.get('caption')))

    def compute_metrics(self, results: list[tuple[Tensor, Tensor, str | None]]) -> dict[str, float]:
        images = torch.stack([image for image, _, _ in results])
        texts = torch.stack([text for _, text, _ in results])
        captions = [caption for _, _, caption in results]
        size = min(self.batch_size, len(results))
        parts = [slice(start, start + size) for start in range(0, len(results) - size + 1, size)]
        batches = [recall_at_1(images[part], texts[part], captions[part]) for part in parts]
        whole = recall_at_1(images, texts, captions)
        within = torch.tensor(batches).mean(0).tolist()
        metrics = {}
        for prefix, values in (('', whole), ('batch_', within)):
            metrics[f'{prefix}image_to_text'], metrics[f'{prefix}text_to_image'] = values
            metrics[f'{prefix}R1'] = sum(values) / 2
        meta = self.dataset_meta or {}
        protocol = {
            'annotations': meta.get('ann_file'),
            'images': len(results),
            'different_captions': len(_distinct(captions)[0]),
            'batch_size': size,
            'batches': len(batches),
        }
        self.publish(metrics, protocol)
        return metrics


def recall_at_1(images: Tensor, texts: Tensor, captions: Sequence[str | None]) -> tuple[float, float]:
    """Share of images whose best text is theirs, and of texts whose best image is one of theirs.

    Args:
        images, texts: [N, D] each, unit length; rows i belong together.
        captions: N; rows with equal captions share one text, the first of them. None equals nothing.
    Returns:
        (image to text, text to image); of tied best candidates, the share of correct ones counts.
    """
    firsts, texts_of_images = _distinct(captions)
    texts = texts[firsts]
    of_images = torch.tensor(texts_of_images, device=texts.device)
    of_texts = torch.arange(len(texts), device=texts.device)
    return (_mean_hits(images, texts, of_images, of_texts), _mean_hits(texts, images, of_texts, of_images))


def _distinct(captions: Sequence[str | None]) -> tuple[list[int], list[int]]:
    """Rows where a caption occurs first, and for each row the index of its caption among these."""
    indices: dict[Any, int] = {}
    firsts, rows = [], []
    for row, caption in enumerate(captions):
        key = (row,) if caption is None else caption
        if key not in indices:
            indices[key] = len(indices)
            firsts.append(row)
        rows.append(indices[key])
    return firsts, rows


def _mean_hits(queries: Tensor, candidates: Tensor, of_queries: Tensor, of_candidates: Tensor) -> float:
    """Mean over queries of the share of correct ones (same number) among the best candidates."""
    hits = []
    for rows, numbers in zip(queries.split(_ROWS), of_queries.split(_ROWS)):
        scores = rows @ candidates.T
        best = scores == scores.amax(1, keepdim=True)
        correct = best & (numbers[:, None] == of_candidates)
        hits.append(correct.sum(1) / best.sum(1))
    return float(torch.cat(hits).mean())
