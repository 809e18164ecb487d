"""Prompts as features per token: encoded once, kept by content, never written to.

Reading order: PromptFeatures and its batch, PromptEncoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..text.phrases import (
    SEPARATOR,
    Prompt,
    Wordings,
    class_prompt,
    positive_map,
    split_caption,
    split_names,
    word_name,
)
from .prompt_tuning import PromptOffset
from .token_encoder import TokenEncoder, TokenFeatures, weights_state


class PromptFeatures(NamedTuple):
    """A prompt of L tokens that names C entities.

    Attributes:
        prompt: the text, its entities and their labels.
        hidden, embedded: [L, W], see ``TokenFeatures``; nothing may write to them.
        token_map: [C, L] bool, the tokens of each entity, at least one.
    """

    prompt: Prompt
    hidden: Tensor
    embedded: Tensor
    token_map: Tensor


class PromptBatch(NamedTuple):
    """P prompts, padded to the longest.

    Attributes:
        features: of P texts.
        token_maps: per prompt [C, L] bool, L as in the features.
        labels: per prompt, the labels of its C entities.
    """

    features: TokenFeatures
    token_maps: list[Tensor]
    labels: list[tuple[int, ...]]

    @classmethod
    def of(cls, prompts: Sequence[PromptFeatures]) -> 'PromptBatch':
        """Pad and stack."""
        length = max(len(prompt.hidden) for prompt in prompts)
        device = prompts[0].hidden.device
        sizes = torch.tensor([len(prompt.hidden) for prompt in prompts], device=device)
        return cls(
            TokenFeatures(
                pad_sequence([prompt.hidden for prompt in prompts], batch_first=True),
                pad_sequence([prompt.embedded for prompt in prompts], batch_first=True),
                torch.arange(length, device=device) < sizes[:, None],
            ),
            [_widened(prompt.token_map, length) for prompt in prompts],
            [prompt.prompt.labels for prompt in prompts],
        )


class PromptEncoder:
    """Cuts words into prompts that fit an encoder, and keeps what the encoder makes of them.

    A plain object on purpose: it owns no weights.

    Attributes:
        offset: shifts of some prompts' features, if any.

    Args:
        encoder: looked at on every call, so its weights may change.
        capacity: prompts that are kept.
        batch_size: prompts per forward of the encoder; with one at a time no bit of a prompt's features
            depends on those beside it.
    """

    def __init__(self, encoder: TokenEncoder, capacity: int = 512, batch_size: int = 1) -> None:
        self.encoder = encoder
        self.offset: PromptOffset | None = None
        self._capacity = capacity
        self._batch_size = batch_size
        self._kept: dict[Prompt, PromptFeatures] = {}
        self._state: tuple[tuple[int, int], ...] = ()

    def name_prompts(
        self,
        names: Sequence[str],
        per_prompt: int | None = None,
        final: str = '',
        wordings: Wordings | None = None,
    ) -> list[Prompt]:
        """As many sentences as a list of class names needs, see ``split_names`` and ``class_prompt``.

        Raises:
            ValueError: a name without tokens, or longer than a sentence may be.
        """
        said = [word_name(name, (wordings or {}).get(name))[0] for name in names]
        *alone, ending = self.encoder.count_tokens([*said, final])
        ended = self.encoder.count_tokens([words + SEPARATOR for words in said])
        counts = [max(own, both - 1) for own, both in zip(alone, ended)]  # signs may melt into a separator
        special = 2 + ending
        for name, count in zip(names, counts):
            if not 0 < count <= self.encoder.max_tokens - special:
                raise ValueError(
                    f'class name {name[:60]!r} has {count} tokens, expected 1 to '
                    f'{self.encoder.max_tokens - special}'
                )
        return [
            class_prompt([names[index] for index in part], part, final, wordings)
            for part in split_names(counts, self.encoder.max_tokens, per_prompt, special)
        ]

    def caption_prompts(self, prompt: Prompt) -> list[Prompt]:
        """A caption, in windows if it is too long, see ``split_caption``."""
        return split_caption(prompt, self.encoder.offsets(prompt.text), self.encoder.max_tokens)

    def check(self, prompt: Prompt) -> None:
        """Refuse a caption that cannot be read.

        Raises:
            ValueError: a phrase without tokens, or of more than a prompt takes.
        """
        for window in self.caption_prompts(prompt):
            positive_map(window, self.encoder.offsets(window.text))

    def forget(self) -> None:
        """Encode everything anew; needed after weights were written to behind autograd's back."""
        self._kept.clear()

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> list[PromptFeatures]:
        """Features of prompts as in evaluation; those that are known cost nothing."""
        state = weights_state(self.encoder)
        if self.offset is not None:
            state += weights_state(self.offset)
        if state != self._state:
            if self.offset is not None:
                self.offset.check_encoder(self.encoder.fingerprint)
            self._kept.clear()
            self._state = state
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        was_training = self.encoder.training
        if was_training:
            self.encoder.eval()
        try:
            for start in range(0, len(new), self._batch_size):
                part = new[start : start + self._batch_size]
                found.update(zip(part, split_batch(self.encoder, part, self.offset)))
        finally:
            if was_training:
                self.encoder.train()
        self._kept.update(found)
        while len(self._kept) > self._capacity:
            del self._kept[next(iter(self._kept))]
        return [found[prompt] for prompt in prompts]


def encode_batch(
    encoder: TokenEncoder,
    prompts: Sequence[Prompt],
    token_ids: Tensor | None = None,
    offset: PromptOffset | None = None,
) -> PromptBatch:
    """P prompts with gradients, as training reads them.

    Args:
        token_ids: [P, L], read instead of the prompts' own tokens, for training that hides some of them.
        offset: shifts of some prompts' features.
    Raises:
        ValueError: a prompt that is too long, or an entity without tokens.
    """
    tokens = encoder.tokenize([prompt.text for prompt in prompts])
    maps = []
    for prompt, offsets in zip(prompts, tokens.offsets):
        token_map = torch.zeros(len(prompt), tokens.ids.shape[1], dtype=torch.bool)
        for row, positions in enumerate(positive_map(prompt, offsets)):
            token_map[row, positions] = True
        maps.append(token_map.to(tokens.ids.device))
    if token_ids is not None:
        tokens = tokens._replace(ids=token_ids)
    features = encoder.read(tokens, prompts, maps)
    if offset is not None:
        features = offset(features, prompts)
    return PromptBatch(features, maps, [prompt.labels for prompt in prompts])


def split_batch(
    encoder: TokenEncoder, prompts: Sequence[Prompt], offset: PromptOffset | None = None
) -> list[PromptFeatures]:
    """P prompts without padding."""
    batch = encode_batch(encoder, prompts, offset=offset)
    lengths = batch.features.mask.sum(1).tolist()
    found = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths)):
        hidden = batch.features.hidden[row, :length].float().clone()
        embedded = batch.features.embedded[row, :length].float()
        # Of the last layer alone both are the same numbers, which need not be kept twice.
        embedded = hidden if torch.equal(hidden, embedded) else embedded.clone()
        found.append(PromptFeatures(prompt, hidden, embedded, batch.token_maps[row][:, :length].clone()))
    return found


def _widened(token_map: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(token_map, (0, length - token_map.shape[1]))
