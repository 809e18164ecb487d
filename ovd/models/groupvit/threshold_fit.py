"""Fit thresholds to score histograms.

Reading order: ScoreCounts, fit_overall, fit_per_class, fit_learned; quantiles (without masks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_RIDGES = (*np.logspace(-4, 4, 17).tolist(), float('inf'))
_EDGE = 1e-3  # thresholds are clipped this far from 0 and 1 before taking logits


@dataclass
class ScoreCounts:
    """Pixel counts by predicted class and score, int64; bin i holds scores from i / N on.

    Attributes:
        right: [K, N], pixels of the predicted class.
        wrong: [K, N], pixels of another class or of background.
        wrong_unseen: [K, N], those of ``wrong`` of an unseen class.
        wrong_background: [N], those of ``wrong`` that are background, over all classes.
        truth: [K], pixels of each class.
        background: pixels of background; None if the data have no background label.
        pixels: all labelled pixels.
    """

    right: Array
    wrong: Array
    wrong_unseen: Array
    wrong_background: Array
    truth: Array
    background: int | None
    pixels: int

    @classmethod
    def empty(cls, classes: int, bins: int, with_background: bool) -> 'ScoreCounts':
        """All counts zero."""

        def zeros(*shape: int) -> Array:
            return np.zeros(shape, np.int64)

        return cls(
            right=zeros(classes, bins),
            wrong=zeros(classes, bins),
            wrong_unseen=zeros(classes, bins),
            wrong_background=zeros(bins),
            truth=zeros(classes),
            background=0 if with_background else None,
            pixels=0,
        )

    @property
    def bins(self) -> int:
        """N."""
        return self.right.shape[1]

    def add(self, label: Array, score: Array, truth: Array, is_unseen: Array) -> None:
        """Count pixels.

        Args:
            label: [n], predicted class, -1: none for any threshold.
            score: [n], its score in 0..1.
            truth: [n], 0..K - 1, or K for background.
            is_unseen: bool [K].
        """
        classes, bins = self.right.shape
        self.pixels += len(truth)
        self.truth += np.bincount(truth, minlength=classes + 1)[:classes]
        if self.background is not None:
            self.background += int((truth == classes).sum())
        given = label >= 0
        label, score, truth = label[given], score[given], truth[given]
        indices = label * bins + np.minimum((score * bins).astype(np.int64), bins - 1)

        def count(chosen: Array) -> Array:
            return np.bincount(indices[chosen], minlength=classes * bins).reshape(classes, bins)

        right = label == truth
        is_background = truth == classes
        self.right += count(right)
        self.wrong += count(~right)
        self.wrong_unseen += count(~right & np.append(is_unseen, False)[truth])
        self.wrong_background += count(is_background).sum(axis=0)

    def without_unseen(self) -> 'ScoreCounts':
        """Counts with pixels of unseen classes ignored."""
        return ScoreCounts(
            self.right,
            self.wrong - self.wrong_unseen,
            np.zeros_like(self.wrong_unseen),
            self.wrong_background,
            self.truth,
            self.background,
            self.pixels,
        )

    def iou(self) -> Array:
        """IoU of each class for every threshold j / N, [K, N + 1]; nan for a class without pixels."""
        right, wrong = _at_least(self.right), _at_least(self.wrong)
        truth = np.where(self.truth > 0, self.truth, np.nan)[:, None]
        return right / (truth + wrong)

    def background_iou(self) -> Array | None:
        """IoU of background for every overall threshold, [N + 1]."""
        if not self.background:
            return None
        predicted = self.pixels - _at_least((self.right + self.wrong).sum(axis=0))
        right = self.background - _at_least(self.wrong_background)
        return right / np.maximum(self.background + predicted - right, 1)


def fit_overall(counts: ScoreCounts) -> float:
    """Threshold with the best mean IoU over classes with pixels, and background if it is a class.

    Raises:
        ValueError: no class has pixels.
    """
    present = counts.iou()[counts.truth > 0]
    if not len(present):
        raise ValueError('no pixels of any class to fit thresholds on')
    background = counts.background_iou()
    if background is not None:
        present = np.concatenate([present, background[None]])
    return _best(present.mean(axis=0))


def fit_per_class(counts: ScoreCounts, overall: float, min_pixels: int) -> tuple[Array, Array]:
    """Threshold of each class with its best IoU.

    Args:
        overall: threshold of classes with fewer than ``min_pixels`` or without a right pixel.
    Returns:
        thresholds [K], and bool [K], False for the overall threshold.
    """
    curves = counts.iou()
    is_own = (counts.truth >= max(min_pixels, 1)) & (counts.right.sum(axis=1) > 0)
    values = [_best(curve) if own else overall for curve, own in zip(curves, is_own)]
    return np.array(values, float), is_own


@dataclass(frozen=True)
class LearnedThreshold:
    """sigmoid(w . t + b) of a class with unit text embedding t.

    Attributes:
        weight: w [D]; zero if the overall threshold is best.
        bias: b.
        ridge: penalty with the best held-out IoU; inf: the overall threshold for all.
        held_out_iou: mean IoU of classes predicted from the others.
        overall_iou: mean IoU of the same classes with the overall threshold.
    """

    weight: Array
    bias: float
    ridge: float
    held_out_iou: float
    overall_iou: float


def fit_learned(
    counts: ScoreCounts, text_embeddings: Array, classes: Array, min_pixels: int
) -> LearnedThreshold:
    """Regress the thresholds of some classes on their text embeddings.

    Ridge regression of the logits of thresholds. The penalty is chosen by leave-one-out mean IoU; the largest
    one gives the overall threshold for all.

    Args:
        counts: without pixels of excluded classes.
        text_embeddings: [K, D].
        classes: bool [K], those to learn from.
        min_pixels: classes with fewer are skipped.
    Raises:
        ValueError: fewer than three classes remain.
    """
    overall = fit_overall(counts)
    values, is_own = fit_per_class(counts, overall, min_pixels)
    chosen = np.flatnonzero(classes & is_own)
    if len(chosen) < 3:
        raise ValueError(
            f'a learned threshold needs at least 3 classes with {min_pixels} pixels, found {len(chosen)}'
        )
    curves, words = counts.iou()[chosen], text_embeddings[chosen].astype(float)
    targets = _logit(values[chosen])

    def held_out_iou(ridge: float) -> float:
        predicted = [
            _predict(_ridge(np.delete(words, i, 0), np.delete(targets, i), ridge, overall), words[i])
            for i in range(len(chosen))
        ]
        return float(np.mean([_at(curve, threshold) for curve, threshold in zip(curves, predicted)]))

    scores = [held_out_iou(ridge) for ridge in _RIDGES]
    best = max(range(len(_RIDGES)), key=lambda i: (scores[i], _RIDGES[i]))  # ties: the largest penalty
    weight, bias = _ridge(words, targets, _RIDGES[best], overall)
    plain = float(np.mean([_at(curve, overall) for curve in curves]))
    return LearnedThreshold(weight, bias, _RIDGES[best], scores[best], plain)


def quantiles(counts: Array, quantile: float, min_scores: int) -> tuple[Array, Array, float]:
    """Quantiles of the scores of each class.

    Args:
        counts: [K, N], scores of each class by bin; bin i holds scores from i / N on.
        quantile: in 0..1.
        min_scores: classes with fewer get the quantile of all scores.
    Returns:
        thresholds [K]; bool [K], False for the overall threshold; the overall threshold.
    Raises:
        ValueError: there are no scores.
    """
    if counts.sum() == 0:
        raise ValueError('no image has a prior below --max-prior for any class: increase it')

    def threshold(row: Array) -> float:
        return (int(np.searchsorted(row.cumsum(), quantile * row.sum())) + 1) / counts.shape[1]

    overall = threshold(counts.sum(axis=0))
    is_own = counts.sum(axis=1) >= max(min_scores, 1)
    values = [threshold(row) if own else overall for row, own in zip(counts, is_own)]
    return np.array(values, float), is_own, overall


def _at_least(counts: Array) -> Array:
    """Counts by bin [..., N] -> number at or above j / N, [..., N + 1]."""
    sums = counts[..., ::-1].cumsum(axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros_like(sums[..., :1])], axis=-1)


def _best(curve: Array) -> float:
    """Middle of the first run of thresholds where ``curve`` [N + 1] is largest."""
    is_best = curve >= curve.max() - 1e-12
    start = int(is_best.argmax())
    rest = is_best[start:]
    length = len(rest) if rest.all() else int((~rest).argmax())
    return (start + (length - 1) / 2) / (len(curve) - 1)


def _at(curve: Array, threshold: float) -> float:
    """Value of ``curve`` [N + 1] at a threshold, rounded up to a bin."""
    return float(curve[int(np.ceil(np.clip(threshold, 0, 1) * (len(curve) - 1) - 1e-9))])


def _logit(values: Array) -> Array:
    values = values.clip(_EDGE, 1 - _EDGE)
    return np.log(values / (1 - values))


def _predict(model: tuple[Array, float], words: Array) -> float:
    return float(1 / (1 + np.exp(-(words @ model[0] + model[1]))))


def _ridge(words: Array, targets: Array, ridge: float, overall: float) -> tuple[Array, float]:
    """w [D] and b that minimise the squared error plus ``ridge`` x |w|^2; b is not penalised.

    With an infinite penalty b is that of the threshold ``overall``.
    """
    if ridge == float('inf'):
        return np.zeros(words.shape[1]), float(_logit(np.array(overall)))
    center = words.mean(axis=0)
    inner = words - center
    gram = inner @ inner.T + ridge * np.eye(len(words))
    weight = inner.T @ np.linalg.solve(gram, targets - targets.mean())
    return weight, float(targets.mean() - center @ weight)


def names_of(names: Sequence[str], chosen: Array) -> list[str]:
    """Names selected by a bool [K]."""
    return [name for name, own in zip(names, chosen) if own]
