"""What turns scored groups into background: a threshold, words for what is no object, or both."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...encoders.text_embeddings import TextEmbeddings
from ...text.vocabulary import Vocabulary
from .thresholds import Thresholds

logger = logging.getLogger(__name__)

Embed = Callable[[Vocabulary], TextEmbeddings]


class GroupBackground(nn.Module):
    """Decide group by group; the decision is about the group's best class.

    A group is background when its best class scores strictly less than that class's threshold, or when one of
    its rivals, the background words and the vector that the model learned, scores higher than every class.

    Args:
        threshold: one number for all classes.
        thresholds: a file of ``tools/calibrate_thresholds.py``, in place of ``threshold``.
        kind, missing: which thresholds of the file, see ``Thresholds.values``.
        names: words for background (sky, wall, grass, ...), in any spelling of ``Vocabulary.parse``. They
            compete with the classes; those that are classes of the vocabulary in use are left out.
        learned: the background vector of the model competes with the classes.
        keep_best: the group of an image (of a window, when the model slides one) that exceeds its threshold
            most, or misses it least, is never background for its threshold.
    """

    def __init__(
        self,
        threshold: float | None = None,
        thresholds: str | Path | None = None,
        kind: str = 'per_class',
        missing: str = 'refuse',
        names: Any = None,
        learned: bool = False,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        if threshold is not None and thresholds is not None:
            raise ValueError(
                f'give threshold ({threshold}) or a file of thresholds ({thresholds}), not both; '
                'threshold=None takes that of a base config away'
            )
        if threshold is None and thresholds is None and names is None and not learned:
            raise ValueError(
                'background needs a threshold, a file of thresholds, names of what is background, or '
                'learned=True'
            )
        self.kind, self.missing, self.keep_best, self.learned = kind, missing, keep_best, learned
        self._numbers = None if thresholds is None else Thresholds.load(thresholds)
        if threshold is not None:
            self._numbers, self.kind = Thresholds(threshold), 'overall'
        self._names = None if names is None else Vocabulary.parse(names)
        self.register_buffer('values', None, persistent=False)
        self.register_buffer('embeddings', None, persistent=False)
        self.values: Tensor | None
        self.embeddings: Tensor | None

    def use_text_embeddings(self, text: TextEmbeddings, embed: Embed | None, device: torch.device) -> None:
        """Look up the thresholds of the classes, and encode the background words that are no classes.

        Raises:
            ValueError: see ``Thresholds.values``; background words without a text tower to encode them.
        """
        values = None if self._numbers is None else self._numbers.values(text, self.kind, self.missing)
        self.values = None if values is None else values.to(device)
        self.embeddings = None
        if self._names is None:
            return
        taken = {word.casefold() for group in text.vocabulary.synonyms for word in group}
        names = [name for name in self._names if name.casefold() not in taken]
        if len(names) < len(self._names):
            logger.info(
                '%d of %d background words are classes', len(self._names) - len(names), len(self._names)
            )
        if not names:
            return
        if embed is None:
            raise ValueError(f'background words such as {names[0]!r} need a text tower, this model has none')
        self.embeddings = embed(Vocabulary(names)).embeddings.to(device)

    def rivals(self, learned: Tensor | None) -> list[Tensor]:
        """What competes with the classes, some of [S, D], unit length.

        Args:
            learned: the background vector of the model [D], if it has one.
        """
        found = [] if self.embeddings is None else [self.embeddings]
        if self.learned:
            if learned is None:
                raise ValueError('background=dict(learned=True) needs a model with a background vector')
            found.append(learned.float()[None])
        return found

    def is_background(self, scores: Tensor, others: Tensor) -> Tensor:
        """Which groups are background.

        Args:
            scores: [B, G, K], of the classes.
            others: [B, G, S], of the rivals; S may be 0.
        Returns:
            bool [B, G].
        """
        best, label = scores.max(dim=-1)
        decision = torch.zeros_like(best, dtype=torch.bool)
        if others.shape[-1]:
            decision = others.amax(dim=-1) > best
        if self.values is not None:
            excess = best - self.values[label]
            limit = excess.amax(dim=-1, keepdim=True).clamp(max=0) if self.keep_best else 0
            decision = decision | (excess < limit)
        return decision
