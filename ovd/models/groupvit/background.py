"""Background decision for groups: thresholds, background words, or both."""

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
    """Decide for each group whether it is background.

    A group is background if its best class scores less than the threshold of that class, or if a background
    word or the learned background embedding scores higher than every class.

    Args:
        threshold: one threshold for all classes.
        thresholds: file of ``tools/calibrate_thresholds.py``, instead of ``threshold``.
        kind, fallback: which thresholds of the file, see ``Thresholds.values``.
        names: background words (sky, wall, grass, ...), as for ``Vocabulary.parse``; those that are classes
            are left out.
        learned: the learned background embedding of the model competes with the classes.
        keep_best: per image (or window), exempt the group with the largest margin from its threshold.
    """

    def __init__(
        self,
        threshold: float | None = None,
        thresholds: str | Path | None = None,
        kind: str = 'per_class',
        fallback: str = 'error',
        names: Any = None,
        learned: bool = False,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        if threshold is not None and thresholds is not None:
            raise ValueError(
                f'background has both threshold={threshold} and thresholds={str(thresholds)!r}; '
                'set threshold=None to replace that of a base config'
            )
        if threshold is None and thresholds is None and names is None and not learned:
            raise ValueError('background needs threshold, thresholds, names or learned=True')
        self.kind, self.fallback, self.keep_best, self.learned = kind, fallback, keep_best, learned
        self._numbers = None if thresholds is None else Thresholds.load(thresholds)
        if threshold is not None:
            self._numbers, self.kind = Thresholds(threshold), 'overall'
        self._names = None if names is None else Vocabulary.parse(names)
        self.register_buffer('values', None, persistent=False)
        self.register_buffer('embeddings', None, persistent=False)
        self.values: Tensor | None
        self.embeddings: Tensor | None

    def use_text_embeddings(self, text: TextEmbeddings, embed: Embed | None, device: torch.device) -> None:
        """Look up the thresholds of the classes, and encode the background words that are not classes.

        Raises:
            ValueError: see ``Thresholds.values``; background words without ``embed``.
        """
        values = None if self._numbers is None else self._numbers.values(text, self.kind, self.fallback)
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
            raise ValueError(f'no text encoder for background words such as {names[0]!r}')
        self.embeddings = embed(Vocabulary(names)).embeddings.to(device)

    def rivals(self, learned: Tensor | None) -> list[Tensor]:
        """Embeddings that compete with the classes, a list of [S, D], unit length.

        Args:
            learned: learned background embedding of the model [D], if any.
        """
        found = [] if self.embeddings is None else [self.embeddings]
        if self.learned:
            assert learned is not None, 'GroupViT checks that it has one'
            found.append(learned.float()[None])
        return found

    def is_background(self, scores: Tensor, others: Tensor) -> Tensor:
        """Decide which groups are background.

        Args:
            scores: [B, G, K], of the classes.
            others: [B, G, S], of the background embeddings; S may be 0.
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
