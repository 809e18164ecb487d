"""Find the thresholds below which a group of a grouping model is background.

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
    """Thresholds from images with masks.

    The overall threshold has the best mean IoU; each class with enough pixels gets the one with its own best
    IoU; where at least three seen classes have enough pixels, a threshold is learned from their text
    embeddings, for which pixels of unseen classes are not looked at.

    Args:
        model: a ``GroupViT`` with a ``SoftReadout``, on its device.
        batches: one image each, of a data set with ``gt_sem_seg``; not those that scores are reported on.
        with_background: whether the label after the classes occurs and means background.
        min_pixels: fewest pixels of a class with a threshold of its own.
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
    """Thresholds from images alone: what a class scores on images that hardly show it.

    Of the groups of all images whose prior for a class is below ``max_prior``, the given share scores below
    the threshold of the class. No label is read.

    Args:
        model, batches, bins, limit: see ``calibrate``; no ``gt_sem_seg`` is needed.
        quantile: that share.
        max_prior: highest probability of a class on an image that counts as not showing it.
        min_groups: fewest groups of a class with a threshold of its own.
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
    """Count every pixel by the class of its group and that class's score, in every window that shows it.

    Returns:
        the counts and the number of images.
    """
    readout = _soft_readout(model)
    classes = len(model.vocabulary)
    is_unseen = np.array(model.vocabulary.is_novel)
    counts = ScoreCounts.empty(classes, bins, with_background)

    def count(inputs: Tensor, context: Tensor | None) -> ScoreMaps:
        """A network for the model's inference whose fourth channel holds the true labels."""
        images, truth = inputs[:, :3], inputs[:, 3].round().long().flatten(1)
        size = (images.shape[2], images.shape[3])
        padded = pad_to_multiple(images, model.size_divisor)
        predictions = model.group_predictions(padded)
        scores, others = readout.group_scores(predictions, context)
        best, label = scores.max(dim=-1)
        if others.shape[-1]:
            label = label.masked_fill(others.amax(dim=-1) > best, IGNORE_INDEX)
        owner = readout.owners(predictions, (padded.shape[2], padded.shape[3]), size).flatten(1)
        counted = truth != IGNORE_INDEX
        columns = (label.gather(1, owner), best.gather(1, owner), truth)
        pixels = [column[counted].cpu().numpy() for column in columns]
        counts.add(pixels[0], pixels[1], pixels[2], is_unseen)
        return TensorScores(inputs[:, :1])

    def see(inputs: Tensor, sample: Any) -> None:
        truth = sample.gt_sem_seg.data[None].to(inputs)
        truth = F.interpolate(truth, size=inputs.shape[2:], mode='nearest-exact')
        with_truth = torch.cat([inputs, truth], dim=1)
        _single_scale(model.inference)(count, with_truth, model.image_context(inputs, [sample]))

    return counts, _for_each_image(model, batches, see, limit)


@torch.no_grad()
def count_absent(
    model: GroupViT, batches: Batches, max_prior: float, bins: int, limit: int | None = None
) -> tuple[np.ndarray, int]:
    """Count what each class scores in groups of images that hardly show it.

    Returns:
        int64 [K, bins], and the number of images.
    """
    readout = _soft_readout(model)
    counts = np.zeros((len(model.vocabulary), bins), np.int64)

    def see(inputs: Tensor, sample: Any) -> None:
        predictions = model.group_predictions(pad_to_multiple(inputs, model.size_divisor))
        prior = model.image_context(inputs, [sample])
        prior = readout.image_prior(predictions) if prior is None else prior
        absent = (prior[0] < max_prior).nonzero().flatten()
        scores = readout.group_scores(predictions, prior, every_class=True)[0][0, :, absent]
        places = (scores * bins).long().clamp(max=bins - 1)
        rows = absent.expand_as(places).flatten().cpu().numpy()
        np.add.at(counts, (rows, places.flatten().cpu().numpy()), 1)

    return counts, _for_each_image(model, batches, see, limit)


def _for_each_image(
    model: GroupViT, batches: Batches, see: Callable[[Tensor, Any], None], limit: int | None
) -> int:
    """Preprocess each image and hand it on with its sample; the number of images."""
    model.prepare_text()
    model.eval()
    done = 0
    for batch in batches:
        if done == limit:
            break
        data = model.data_preprocessor(batch, False)
        if len(data['inputs']) != 1:
            raise ValueError(f'calibration takes one image at a time, got a batch of {len(data["inputs"])}')
        sample = data['data_samples'][0]
        see(model.without_padding(data['inputs'], sample), sample)
        done += 1
    return done


def _soft_readout(model: GroupViT) -> SoftReadout:
    readout = model.readout if isinstance(model, GroupViT) else None
    if not isinstance(readout, SoftReadout):
        raise ValueError(
            f'thresholds belong to a SoftReadout, this model has {type(readout or model).__name__}'
        )
    return readout


def _single_scale(inference: Inference) -> Inference:
    """The way a model sees windows, without averaging over scales and mirror images."""
    return inference.inference if isinstance(inference, MultiScale) else inference
