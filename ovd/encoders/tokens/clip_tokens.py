"""CLIP's text tower as an encoder of tokens: read in their sentence, or by themselves in the joint space."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...files import sha256_json, sha256_tensors
from ...text.phrases import Prompt
from ...text.templates import Templates
from ..loading import PathLike, build_clip, load_clip_tokenizer
from ..text_encoder import TokenTower
from .clip_tokenizer import ClipPromptTokenizer
from .token_encoder import TokenEncoder, TokenFeatures, pad_ids, weights_state

_BATCH = 512  # texts per forward; affects memory only
_CAPACITY = 16_384  # vectors of a frozen tower in the cache

_Texts = tuple[tuple[int, ...], ...]  # token ids of the texts whose vectors are averaged


class ClipTokens(TokenEncoder):
    """Token features from the text tower of a CLIP; gradients pass unless it is frozen.

    Only the vector of a whole text lies in the space of CLIP's images, and the tower is causal: a token knows
    the words before it. So words that were never trained with boxes are best read by themselves:

    - 'tokens': the sentence is read as it is; features [W = width] are those after the last layer norm.
    - 'words': each word is read by itself; its tokens get its vector [W = D of the joint space].
    - 'phrases': each entity of the prompt is read by itself, without its article; its tokens get its vector,
      the mean of several where entities overlap. Words outside are read bare, without templates.

    Vectors are scaled to length sqrt(W), and zero at the special tokens. Sentences of 'words' and 'phrases'
    may be of any length; a single word or phrase that is longer than CLIP's context is cut, with a warning.

    Args:
        model, pretrained: see ``load_clip``; the image tower is left out.
        features: one of ``FEATURES``.
        templates: for words and phrases, see ``get_templates``.
        max_tokens: longest text, both special tokens included; by default the context of the tower for
            'tokens' and 256 otherwise.
        frozen: no gradients.
    Raises:
        ValueError: see ``ClipPromptTokenizer`` and ``load_clip``; a text tower that is not causal and pooled
            at its end token.
    """

    tokenizer: ClipPromptTokenizer

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
        clip = build_clip(model, pretrained)
        self.tokenizer = ClipPromptTokenizer(
            clip.tokenizer, clip.context_length, features, templates, max_tokens
        )
        tower: Any = getattr(clip.model, 'text', clip.model)
        if not hasattr(tower, 'token_embedding') or not TokenTower(tower).is_cut:
            raise ValueError(f'the text tower of CLIP {model} is not causal, or not pooled at its end token')
        self.model = TokenTower(tower)
        self.features = features
        self.embed_dim = len(tower.ln_final.weight) if features == 'tokens' else clip.embed_dim
        self.frozen = frozen
        if frozen:
            self.model.requires_grad_(False)
            self.train(False)
        elif features == 'tokens' and isinstance(self.model.text_projection, Tensor):
            self.model.text_projection.requires_grad_(False)
        self._cache: dict[_Texts, Tensor] = {}
        self._state: Any = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the weights and the settings."""
        content = {
            'settings': self.tokenizer.settings,
            'weights': sha256_tensors(self.model.state_dict()),
        }
        return sha256_json(content)[:16]

    def train(self, mode: bool = True) -> 'ClipTokens':
        """Stay in eval mode if frozen; clear the cache, since hooks may have written to the weights."""
        self._cache = {}
        super().train(mode)
        return self

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> TokenFeatures:
        """[T, L] and [T, L] -> features per token of whole sentences, [T, L, width]."""
        with torch.autocast(token_ids.device.type, enabled=False) if self.frozen else nullcontext():
            hidden = self.model.token_features(token_ids)
        return TokenFeatures(hidden, hidden * token_mask[..., None], token_mask)

    def read(self, token_ids: Tensor, token_mask: Tensor, prompts: Sequence[Prompt]) -> TokenFeatures:
        """See ``TokenEncoder``."""
        if self.features == 'tokens':
            return super().read(token_ids, token_mask, prompts)
        rows: dict[_Texts, int] = {}
        positions, chosen = [], []
        length = token_ids.shape[1]
        for index, prompt in enumerate(prompts):
            for part in prompt.parts:
                row = rows.setdefault(part.texts, len(rows))
                positions += [index * length + position for position in part.positions]
                chosen += [row] * len(part.positions)
        device = token_ids.device
        sums = torch.zeros(token_ids.numel(), self.embed_dim, device=device)
        if rows:
            vectors = self._vectors(list(rows))
            indices = torch.tensor([positions, chosen]).to(device, non_blocking=True)
            sums = sums.index_add(0, indices[0], vectors[indices[1]])
        hidden = (F.normalize(sums, dim=-1) * self.embed_dim**0.5).unflatten(0, token_ids.shape)
        return TokenFeatures(hidden, hidden, token_mask)

    def _vectors(self, groups: Sequence[_Texts]) -> Tensor:
        """Unit vectors [U, D] of the joint space, each the mean of a group of texts; cached if frozen."""
        if not self.frozen:
            return self._encode(groups)
        state = weights_state(self.model)
        if state != self._state or len(self._cache) > _CAPACITY:
            self._cache, self._state = {}, state
        new = [group for group in groups if group not in self._cache]
        if new:
            device = next(self.parameters()).device
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                self._cache.update(zip(new, self._encode(new)))
        return torch.stack([self._cache[group] for group in groups])

    def _encode(self, groups: Sequence[_Texts]) -> Tensor:
        texts = list(dict.fromkeys(text for group in groups for text in group))
        rows = {text: row for row, text in enumerate(texts)}
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(texts), _BATCH):
            token_ids, _ = pad_ids(texts[start : start + _BATCH], self.tokenizer.pad_id)
            parts.append(self.model(token_ids.to(device)).float())
        vectors = F.normalize(torch.cat(parts), dim=-1)
        group_indices = [index for index, group in enumerate(groups) for _ in group]
        members = vectors[[rows[text] for group in groups for text in group]]
        sums = vectors.new_zeros(len(groups), self.embed_dim)
        return F.normalize(sums.index_add(0, torch.tensor(group_indices, device=device), members), dim=-1)


def clip_prompt_tokenizer(
    model: PathLike,
    pretrained: PathLike | None = None,
    features: str = 'phrases',
    templates: Templates = 'a photo of {article} {}.',
    max_tokens: int | None = None,
    frozen: bool = True,
) -> ClipPromptTokenizer:
    """The tokenizer of a ``ClipTokens`` with the same arguments, without loading the weights."""
    tokenizer, context_length = load_clip_tokenizer(model, pretrained)
    return ClipPromptTokenizer(tokenizer, context_length, features, templates, max_tokens)
