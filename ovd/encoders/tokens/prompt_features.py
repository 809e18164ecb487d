"""Prompts as features per token: encoded once and cached.

Reading order: PromptFeatures, PromptBatch, PromptEncoder, encode_batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...text.phrases import Prompt
from .prompt_tuning import PromptTuning
from .token_encoder import TokenEncoder, TokenFeatures, pad_ids, weights_state


class PromptFeatures(NamedTuple):
    """A prompt of L tokens that names C entities.

    Attributes:
        prompt: the text, its entities and their labels.
        hidden, embedded: [L, W], see ``TokenFeatures``; cached, so they must not be written to.
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
    """Encodes prompts and caches their features.

    A plain object on purpose: it owns no weights.

    Attributes:
        tuning: learned shifts of some prompts' features, if any.

    Args:
        encoder: its weights may change; their state is compared on every call.
        capacity: number of cached prompts.
        batch_size: prompts per forward of the encoder; with one at a time, the features of a prompt are equal
            to the last bit whatever is encoded with it.
    """

    def __init__(self, encoder: TokenEncoder, capacity: int = 512, batch_size: int = 1) -> None:
        self.encoder = encoder
        self.tuning: PromptTuning | None = None
        self._capacity = capacity
        self._batch_size = batch_size
        self._cache: dict[Prompt, PromptFeatures] = {}
        self._state: tuple[tuple[int, int], ...] = ()

    def forget(self) -> None:
        """Clear the cache; needed after weights were written to through ``.data``."""
        self._cache.clear()

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> list[PromptFeatures]:
        """Features of prompts in eval mode; cached ones are returned as they are."""
        state = weights_state(self.encoder)
        if self.tuning is not None:
            state += weights_state(self.tuning)
        if state != self._state:
            if self.tuning is not None:
                self.tuning.check_encoder(self.encoder.fingerprint)
            self._cache.clear()
            self._state = state
        found = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        was_training = self.encoder.training
        if was_training:
            self.encoder.eval()
        try:
            for start in range(0, len(new), self._batch_size):
                part = new[start : start + self._batch_size]
                found.update(zip(part, split_batch(self.encoder, part, self.tuning)))
        finally:
            if was_training:
                self.encoder.train()
        self._cache.update(found)
        while len(self._cache) > self._capacity:
            del self._cache[next(iter(self._cache))]
        return [found[prompt] for prompt in prompts]


def encode_batch(
    encoder: TokenEncoder,
    prompts: Sequence[Prompt],
    token_ids: Tensor | None = None,
    tuning: PromptTuning | None = None,
) -> PromptBatch:
    """Features of P prompts, with gradients, and the tokens of their entities.

    Args:
        token_ids: [P, L], used instead of the prompts' own, for training that masks some of them.
        tuning: shifts of some prompts' features.
    Raises:
        ValueError: a prompt that is too long, or an entity without tokens.
    """
    prompts = [encoder.tokenizer.tokenize(prompt) for prompt in prompts]
    features = encode_prompts(encoder, prompts, token_ids, tuning)
    length, device = features.mask.shape[1], features.mask.device
    maps = [token_map(prompt, length).to(device) for prompt in prompts]
    return PromptBatch(features, maps, [prompt.labels for prompt in prompts])


def encode_prompts(
    encoder: TokenEncoder,
    prompts: Sequence[Prompt],
    token_ids: Tensor | None = None,
    tuning: PromptTuning | None = None,
) -> TokenFeatures:
    """Features of P tokenized prompts, see ``encode_batch``."""
    device = next(encoder.parameters()).device
    own_ids, token_mask = pad_ids([prompt.token_ids for prompt in prompts], encoder.tokenizer.pad_id)
    token_ids = own_ids if token_ids is None else token_ids
    token_ids, token_mask = (part.to(device, non_blocking=True) for part in (token_ids, token_mask))
    features = encoder.read(token_ids, token_mask, prompts)
    return features if tuning is None else tuning(features, prompts)


def token_map(prompt: Prompt, length: int | None = None) -> Tensor:
    """[C, L] bool, the tokens of each entity of a tokenized prompt; padded to ``length``."""
    found = torch.zeros(len(prompt), length or len(prompt.token_ids), dtype=torch.bool)
    for row, positions in zip(found, prompt.positions):
        row[list(positions)] = True
    return found


def split_batch(
    encoder: TokenEncoder, prompts: Sequence[Prompt], tuning: PromptTuning | None = None
) -> list[PromptFeatures]:
    """Features of P prompts in eval mode, without padding."""
    batch = encode_batch(encoder, prompts, tuning=tuning)
    lengths = batch.features.mask.sum(1).tolist()
    found = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths)):
        hidden = batch.features.hidden[row, :length].float().clone()
        embedded = batch.features.embedded[row, :length].float()
        # Equal for encoders that use the last layer only; stored once.
        embedded = hidden if torch.equal(hidden, embedded) else embedded.clone()
        found.append(PromptFeatures(prompt, hidden, embedded, batch.token_maps[row][:, :length].clone()))
    return found


def _widened(token_map: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(token_map, (0, length - token_map.shape[1]))
