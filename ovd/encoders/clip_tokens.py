"""CLIP's text tower as an encoder of tokens: read in their sentence, or by themselves in the joint space."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import sha256_json, sha256_tensors
from ..text.phrases import Prompt
from ..text.templates import Templates, expand, get_templates
from .clip_tokenizer import ClipTokenizer
from .loading import PathLike, build_clip
from .text_encoder import TokenTower
from .token_encoder import TokenEncoder, TokenFeatures, Tokens, check_length, check_texts, weights_state

logger = logging.getLogger(__name__)

FEATURES = ('tokens', 'words', 'phrases')
_ARTICLES = ('a ', 'an ', 'the ')
_BATCH = 512  # texts per forward; affects memory only
_CAPACITY = 16_384  # vectors of a frozen tower that are kept


class ClipTokens(TokenEncoder):
    """Token features from the text tower of a CLIP; gradients pass unless it is frozen.

    Only the vector of a whole text lies in the space of CLIP's images, and the tower is causal: a token knows
    the words before it. So words that were never trained with boxes are best read by themselves:

    - 'tokens': the sentence is read as it is; features [W = width] are those after the last layer norm.
    - 'words': each word is read by itself; its tokens get its vector [W = D of the joint space].
    - 'phrases': each entity of the prompt is read by itself, without its article; its tokens get its vector,
      the mean of several where entities overlap. Words outside are read bare, without templates.

    Vectors are scaled to length sqrt(W), and zero at the special tokens. Sentences of 'words' and 'phrases'
    may be of any length; a single word or phrase that is longer than CLIP's context is cut, which is said
    once.

    Args:
        model, pretrained: see ``load_clip``; the image tower is left out.
        features: one of ``FEATURES``.
        templates: for words and phrases, see ``get_templates``.
        max_tokens: longest text, both special tokens included; by default the context of the tower for
            'tokens' and 256 otherwise.
        frozen: no gradients.
    Raises:
        ValueError: unknown ``features``; ``max_tokens`` beyond the context for 'tokens'; a CLIP whose text
            tower or tokenizer is not open_clip's own; see also ``load_clip``.
    """

    def __init__(
        self,
        model: PathLike,
        pretrained: PathLike | None = None,
        features: str = 'phrases',
        templates: Templates = 'a photo of {article} {}.',
        max_tokens: int | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f'features must be one of {list(FEATURES)}, got {features!r}')
        clip = build_clip(model, pretrained)
        tower: Any = getattr(clip.model, 'text', clip.model)
        if not hasattr(tower, 'token_embedding') or not TokenTower(tower).is_cut:
            raise ValueError(f'the text tower of CLIP {model} is not causal, or not pooled at its end token')
        self.model = TokenTower(tower)
        self.tokenizer = ClipTokenizer(clip.tokenizer)
        self.features = features
        self.templates = get_templates(templates)
        self.context_length = clip.context_length
        self.max_tokens = max_tokens or (self.context_length if features == 'tokens' else 256)
        limit = self.context_length if features == 'tokens' else self.max_tokens
        if not 2 < self.max_tokens <= limit:
            raise ValueError(f'max_tokens is {self.max_tokens}, the text tower has {limit} positions')
        self.embed_dim = len(tower.ln_final.weight) if features == 'tokens' else clip.embed_dim
        self.frozen = frozen
        if frozen:
            self.model.requires_grad_(False)
            self.train(False)
        elif features == 'tokens' and isinstance(self.model.text_projection, Tensor):
            self.model.text_projection.requires_grad_(False)
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._state: Any = None
        self._said_truncation = False

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights and the settings."""
        content = {
            'settings': [self.features, self.max_tokens, self.templates.spelling, *self.templates.templates],
            'weights': sha256_tensors(self.model.state_dict()),
        }
        return sha256_json(content)[:16]

    def train(self, mode: bool = True) -> 'ClipTokens':
        """Stay in eval mode where frozen; forget vectors, since hooks may have written to the weights."""
        self._kept = {}
        super().train(mode)
        return self

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones not counted."""
        return self.tokenizer.count_tokens(texts)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters of each token of a text of any length, special ones included."""
        return [(0, 0), *self.tokenizer.read(text).offsets, (0, 0)]

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> Tokens:
        """See ``TokenEncoder``."""
        check_texts(texts)
        ids, offsets = [], []
        for text in texts:
            found = self.tokenizer.read(text)
            if not truncate:
                check_length(text, len(found.ids) + 2, self.max_tokens)
            ids.append(found.ids[: self.max_tokens - 2])
            offsets.append([(0, 0), *found.offsets[: self.max_tokens - 2], (0, 0)])
        return Tokens(*self._padded(ids), offsets)

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> TokenFeatures:
        """[T, L] and [T, L] -> features per token of whole sentences, [T, L, width]."""
        with torch.autocast(token_ids.device.type, enabled=False) if self.frozen else nullcontext():
            hidden = self.model.token_features(token_ids)
        return TokenFeatures(hidden, hidden * token_mask[..., None], token_mask)

    def read(self, tokens: Tokens, prompts: Sequence[Prompt], token_maps: Sequence[Tensor]) -> TokenFeatures:
        """See ``TokenEncoder``."""
        if self.features == 'tokens':
            return super().read(tokens, prompts, token_maps)
        units: dict[tuple[str, ...], int] = {}
        places, chosen = [], []
        length = tokens.ids.shape[1]
        for row, (prompt, token_map) in enumerate(zip(prompts, token_maps)):
            for position, text in self._units(prompt, token_map):
                places.append(row * length + position)
                chosen.append(units.setdefault(text, len(units)))
        device = tokens.ids.device
        sums = torch.zeros(tokens.ids.numel(), self.embed_dim, device=device)
        if units:
            vectors = self._vectors(list(units))
            sums = sums.index_add(0, torch.tensor(places, device=device), vectors[chosen])
        hidden = (F.normalize(sums, dim=-1) * self.embed_dim**0.5).unflatten(0, tokens.ids.shape)
        return TokenFeatures(hidden, hidden, tokens.mask)

    def _units(self, prompt: Prompt, token_map: Tensor) -> list[tuple[int, tuple[str, ...]]]:
        """Tokens of a prompt, each with the texts that are averaged for it; some stand there repeatedly."""
        found = self.tokenizer.read(prompt.text)
        units = []
        covered: set[int] = set()
        if self.features == 'phrases':
            for ranges, tokens in zip(prompt.spans, token_map.tolist()):
                text = _without_article(' '.join(prompt.text[start:end] for start, end in ranges))
                prompts = tuple(expand(text, self.templates))
                positions = [position for position, is_own in enumerate(tokens) if is_own]
                units += [(position, prompts) for position in positions]
                covered.update(positions)
        for position, owner in enumerate(found.owners, start=1):
            if position not in covered:
                word = found.words[owner]
                alone = tuple(expand(word, self.templates)) if self.features == 'words' else (word,)
                units.append((position, alone))
        return units

    def _vectors(self, units: Sequence[tuple[str, ...]]) -> Tensor:
        """Unit vectors [U, D] of the joint space, each the mean of some texts; kept where frozen."""
        if not self.frozen:
            return self._encode(units)
        state = weights_state(self.model)
        if state != self._state or len(self._kept) > _CAPACITY:
            self._kept, self._state = {}, state
        new = [unit for unit in units if unit not in self._kept]
        if new:
            device = next(self.parameters()).device
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                self._kept.update(zip(new, self._encode(new)))
        return torch.stack([self._kept[unit] for unit in units])

    def _encode(self, units: Sequence[tuple[str, ...]]) -> Tensor:
        texts = list(dict.fromkeys(text for unit in units for text in unit))
        rows = {text: row for row, text in enumerate(texts)}
        ids = [self.tokenizer.read(text).ids for text in texts]
        limit = self.context_length - 2
        for text, own in zip(texts, ids):
            if len(own) > limit and not self._said_truncation:
                self._said_truncation = True
                logger.warning(
                    'a phrase is longer than the %d tokens of the text encoder and is cut (said once): %.80r',
                    self.context_length,
                    text,
                )
        parts = []
        for start in range(0, len(ids), _BATCH):
            token_ids, _ = self._padded([own[:limit] for own in ids[start : start + _BATCH]])
            parts.append(self.model(token_ids).float())
        vectors = F.normalize(torch.cat(parts), dim=-1)
        owners = [index for index, unit in enumerate(units) for _ in unit]
        members = vectors[[rows[text] for unit in units for text in unit]]
        sums = vectors.new_zeros(len(units), self.embed_dim)
        return F.normalize(sums.index_add(0, torch.tensor(owners, device=vectors.device), members), dim=-1)

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids with start and end, padded to the longest [T, L], and their mask."""
        first, last = self.tokenizer.tokenizer.sot_token_id, self.tokenizer.tokenizer.eot_token_id
        device = next(self.parameters()).device
        length = max(len(own) for own in ids) + 2
        rows = [[first, *own, last] + [0] * (length - 2 - len(own)) for own in ids]
        lengths = torch.tensor([len(own) + 2 for own in ids], device=device)
        return torch.tensor(rows, device=device), torch.arange(length, device=device) < lengths[:, None]


def _without_article(phrase: str) -> str:
    article = next((word for word in _ARTICLES if phrase.lower().startswith(word)), '')
    return phrase[len(article) :]
