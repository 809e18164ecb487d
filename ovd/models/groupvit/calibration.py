"""Calibration of the thresholds below which a group is background.

Reading order: calibrate (with masks), calibrate_without_masks; count_scores, count_absent (passes over data).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...datasets.segmentation.label_maps import IGNORE_INDEX
from ...layers.geometry import pad_to_multiple
from ...layers.score_maps import ScoreMaps, TensorScores
from ..segmentation_inference import Inference, MultiScale
from .readout import SoftReadout
from .segmentor import GroupViT
from .threshold_fit import ScoreCounts, fit_learned, fit_overall, fit_per_class, names_of, quantiles
from .thresholds import Thresholds

Batches = Iterable[Mapping[str, Any]]


def calibrate(
    model: GroupViT,
    batches: Batches,
    with_background: bool,
    min_pixels: int = 10_000,
    bins: int = 1000,
    limit: int | None = None,
) -> Thresholds:
    """Fit thresholds on images with masks.

    The overall threshold maximises mean IoU; the threshold of a class with enough pixels its own IoU. With at
    least three such seen classes, a threshold is also regressed on text embeddings, ignoring pixels of unseen
    classes.

    Args:
        model: a ``GroupViT`` with a ``SoftReadout``.
        batches: of one image, with ``gt_sem_seg``; never the images of reported scores.
        with_background: whether label K occurs and means background.
        min_pixels: pixels that a class needs for its own threshold.
        bins: resolution of scores; thresholds are exact to 1 / bins.
        limit: number of images, by default all.
    Raises:
        ValueError: another readout, a batch of several images, no pixel of any class.
    """
    counts, images = count_scores(model, batches, with_background, bins, limit)
    vocabulary, text = model.vocabulary, model.text_embeddings
    overall = fit_overall(counts)
    values, is_own = fit_per_class(counts, overall, min_pixels)
    fit: dict[str, Any] = {
        'method': 'masks',
        'images': images,
        'pixels': counts.pixels,
        'min_pixels': min_pixels,
        'overall_for': names_of(vocabulary.names, ~is_own),
    }
    seen = ~np.array(vocabulary.is_novel)
    weight, bias = None, 0.0
    if (seen & is_own).sum() >= 3:
        learned = fit_learned(counts.without_unseen(), text.embeddings.numpy(), seen, min_pixels)
        weight, bias = tuple(learned.weight.tolist()), learned.bias
        fit['learned'] = {
            'classes': int((seen & is_own).sum()),
            'ridge': None if learned.ridge == float('inf') else learned.ridge,
            'held_out_iou': learned.held_out_iou,
            'overall_iou': learned.overall_iou,
        }
    per_class = dict(zip(vocabulary.names, values.tolist()))
    return Thresholds(overall, per_class, weight, bias, text.encoder_fingerprint, fit)


def calibrate_without_masks(
    model: GroupViT,
    batches: Batches,
    quantile: float = 0.99,
    max_prior: float = 0.01,
    min_groups: int = 1000,
    bins: int = 1000,
    limit: int | None = None,
) -> Thresholds:
    """Fit thresholds on images without labels.

    The threshold of a class is a quantile of its scores in images with a low prior for it.

    Args:
        model, batches, bins, limit: see ``calibrate``; ``gt_sem_seg`` is not read.
        quantile: share of scores below the threshold.
        max_prior: class probability below which an image counts as not showing the class.
        min_groups: groups that a class needs for its own threshold.
    """
    counts, images = count_absent(model, batches, max_prior, bins, limit)
    values, is_own, overall = quantiles(counts, quantile, min_groups)
    names = model.vocabulary.names
    fit = {
        'method': 'images without masks',
        'images': images,
        'quantile': quantile,
        'max_prior': max_prior,
        'min_groups': min_groups,
        'overall_for': names_of(names, ~is_own),
    }
    fingerprint = model.text_embeddings.encoder_fingerprint
    return Thresholds(overall, dict(zip(names, values.tolist())), encoder_fingerprint=fingerprint, fit=fit)


@torch.no_grad()
def count_scores(
    model: GroupViT, batches: Batches, with_background: bool, bins: int, limit: int | None = None
) -> tuple[ScoreCounts, int]:
    """Count every pixel of every window by the class of its group and the score of that class.

    Returns:
        the counts and the number of images.
    """
    readout = _soft_readout(model)
    classes = len(model.vocabulary)
    is_unseen = np.array(model.vocabulary.is_novel)
    counts = ScoreCounts.empty(classes, bins, with_background)

    def count(inputs: Tensor, context: Tensor | None) -> ScoreMaps:
        """Network for the model's inference; the fourth input channel holds the true labels."""
        images, truth = inputs[:, :3], inputs[:, 3].round().long().flatten(1)
        size = (images.shape[2], images.shape[3])
        padded = pad_to_multiple(images, model.size_divisor)
        predictions = model.group_predictions(padded)
        scores, others = readout.group_scores(predictions, context)
        best, label = scores.max(dim=-1)
        if others.shape[-1]:
            label = label.masked_fill(others.amax(dim=-1) > best, IGNORE_INDEX)
        row = readout.assigned_rows(predictions, (padded.shape[2], padded.shape[3]), size).flatten(1)
        counted = truth != IGNORE_INDEX
        columns = (label.gather(1, row), best.gather(1, row), truth)
        pixels = [column[counted].cpu().numpy() for column in columns]
        counts.add(pixels[0], pixels[1], pixels[2], is_unseen)
        return TensorScores(inputs[:, :1])

    def process(inputs: Tensor, sample: Any) -> None:
        truth = sample.gt_sem_seg.data[None].to(inputs)
        truth = F.interpolate(truth, size=inputs.shape[2:], mode='nearest-exact')
        with_truth = torch.cat([inputs, truth], dim=1)
        _single_scale(model.inference)(count, with_truth, model.image_context(inputs, [sample]))

    return counts, _for_each_image(model, batches, process, limit)


@torch.no_grad()
def count_absent(
    model: GroupViT, batches: Batches, max_prior: float, bins: int, limit: int | None = None
) -> tuple[np.ndarray, int]:
    """Count scores of each class in groups of images with a low prior for it.

    Returns:
        int64 [K, bins], and the number of images.
    """
    readout = _soft_readout(model)
    counts = np.zeros((len(model.vocabulary), bins), np.int64)

    def process(inputs: Tensor, sample: Any) -> None:
        predictions = model.group_predictions(pad_to_multiple(inputs, model.size_divisor))
        prior = model.image_context(inputs, [sample])
        prior = readout.image_prior(predictions) if prior is None else prior
        absent = (prior[0] < max_prior).nonzero().flatten()
        scores = readout.group_scores(predictions, prior, every_class=True)[0][0, :, absent]
        indices = (scores * bins).long().clamp(max=bins - 1)
        rows = absent.expand_as(indices).flatten().cpu().numpy()
        np.add.at(counts, (rows, indices.flatten().cpu().numpy()), 1)

    return counts, _for_each_image(model, batches, process, limit)


def _for_each_image(
    model: GroupViT, batches: Batches, process: Callable[[Tensor, Any], None], limit: int | None
) -> int:
    """Call ``process`` with each preprocessed image and its sample; return the number of images."""
    model.prepare_text()
    model.eval()
    done = 0
    for batch in batches:
        if done == limit:
            break
        data = model.data_preprocessor(batch, False)
        (sample,) = data['data_samples']
        process(model.without_padding(data['inputs'], sample), sample)
        done += 1
    return done


def _soft_readout(model: GroupViT) -> SoftReadout:
    readout = model.readout if isinstance(model, GroupViT) else None
    if not isinstance(readout, SoftReadout):
        raise ValueError(
            f'calibration requires a GroupViT with SoftReadout, got {type(readout or model).__name__}'
        )
    return readout


def _single_scale(inference: Inference) -> Inference:
    """Inference of one scale without flips."""
    return inference.inference if isinstance(inference, MultiScale) else inference
