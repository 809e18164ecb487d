"""Fusion of image and text inside a detection head: attention both ways, and a layer for the text stream.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022, Sec. 3.2; the clamps, the residual
around normalised tensors and the initial values are those of the released code.
Reading order: VLFuse (the block), BidirectionalAttention, TextLayer.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIMIT = 50_000.0  # of attention scores and activations, a guard against overflow in half precision
_SCORES_AT_A_TIME = 1 << 21  # of attention in inference; affects memory only


class VLFuse(nn.Module):
    """Exchanges information between the maps of an image and the tokens of a text.

    Args:
        channels: C of the maps.
        text_channels: W of the tokens.
        embed_dims: width of the attention; divisible by ``num_heads``.
        num_heads: attention heads.
        dropout: of both attention maps.
        initial_scale: of what is added to the two streams, learned per channel; 1 / number of blocks.
    """

    def __init__(
        self,
        channels: int,
        text_channels: int,
        embed_dims: int = 2048,
        num_heads: int = 8,
        dropout: float = 0.1,
        initial_scale: float = 1 / 6,
    ) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(channels)
        self.norm_text = nn.LayerNorm(text_channels)
        self.attention = BidirectionalAttention(channels, text_channels, embed_dims, num_heads, dropout)
        self.scale_image = nn.Parameter(torch.full((channels,), initial_scale))
        self.scale_text = nn.Parameter(torch.full((text_channels,), initial_scale))

    def forward(
        self, maps: Sequence[Tensor], text: Tensor, text_mask: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Maps [B, C, h, w] and text [B, L, W] -> both, changed; text_mask [B, L], True = real token."""
        sizes = [level.shape[-2:] for level in maps]
        places = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
        places, text = self.fuse(places, text, text_mask)
        parts = places.transpose(1, 2).split([height * width for height, width in sizes], dim=2)
        return [part.unflatten(2, size) for part, size in zip(parts, sizes)], text

    def fuse(
        self,
        places: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        place_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Places [B, N, C] and text [B, L, W] -> both; masks as in ``BidirectionalAttention``."""
        places, text = self.norm_image(places), self.norm_text(text)
        place_change, text_change = self.attention(places, text, text_mask, place_mask)
        return places + self.scale_image * place_change, text + self.scale_text * text_change


class BidirectionalAttention(nn.Module):
    """Attention of places to tokens and of tokens to places, from one set of scores.

    Args: see ``VLFuse``.
    """

    def __init__(
        self, channels: int, text_channels: int, embed_dims: int, num_heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims {embed_dims} is not divisible by num_heads {num_heads}')
        self.num_heads = num_heads
        self.dropout = dropout
        self.scale = (embed_dims // num_heads) ** -0.5
        self.query = nn.Linear(channels, embed_dims)
        self.key = nn.Linear(text_channels, embed_dims)
        self.image_value = nn.Linear(channels, embed_dims)
        self.text_value = nn.Linear(text_channels, embed_dims)
        self.image_out = nn.Linear(embed_dims, channels)
        self.text_out = nn.Linear(embed_dims, text_channels)
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        places: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        place_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the other stream adds to each: [B, N, C] and [B, L, W].

        Args:
            places: [B, N, C], normalised.
            text: [B, L, W], normalised.
            text_mask: [B, L], True = real token; places attend to no other.
            place_mask: [B, N], True = real place; tokens attend to no other.
        """
        if place_mask is None and self._is_foldable(places, text):
            folded = self._attend_folded(places, text, text_mask)
            if folded is not None:
                return folded
        query = self._heads(self.query(places) * self.scale)
        key = self._heads(self.key(text))
        place_values, text_values = self._heads(self.image_value(places)), self._heads(self.text_value(text))
        attend = _fused_attention if scores_are_small(query, key) else _clamped_attention
        dropout = self.dropout if self.training else 0.0
        from_text, from_places = attend(query, key, place_values, text_values, text_mask, place_mask, dropout)
        return self.image_out(self._joined(from_text)), self.text_out(self._joined(from_places))

    def _is_foldable(self, places: Tensor, text: Tensor) -> bool:
        """Whether ``_attend_folded`` can be used, and is less work than projecting every place."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled(places.device.type):
            return False
        channels, tokens, embed_dims = places.shape[2], text.shape[1], self.query.out_features
        plain = 3 * channels * embed_dims + 4 * tokens * embed_dims
        return 3 * tokens * self.num_heads * channels <= plain

    def _attend_folded(
        self, places: Tensor, text: Tensor, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """What ``forward`` returns, without projecting places; None where a score could reach the clamp.

        A score (W x + b) k is x (W' k) + b k: the few keys are brought to the channels of the places, not the
        many places to the heads, and so are the values. The tokens of all heads then form one long text.
        """
        heads = (self.num_heads, -1)
        keys = self._heads(self.key(text) * self.scale)
        shifts = (keys @ self.query.bias.unflatten(0, heads)[..., None]).squeeze(3)
        keys = keys @ self.query.weight.unflatten(0, heads)
        if not places.norm(dim=-1).max() * keys.norm(dim=-1).max() + shifts.abs().max() < LIMIT / 2:
            return None
        values = self._heads(self.text_value(text)) @ self.image_out.weight.unflatten(1, heads).permute(
            1, 2, 0
        )
        place_change = self.image_out.bias.expand_as(places)
        gathered = []
        step = max(1, _SCORES_AT_A_TIME // (places.shape[0] * places.shape[1] * text.shape[1]))
        for start in range(0, self.num_heads, step):
            part = slice(start, start + step)
            scores = torch.baddbmm(
                shifts[:, part].flatten(1)[:, None], places, keys[:, part].flatten(1, 2).transpose(1, 2)
            )
            gathered.append(scores.softmax(1).transpose(1, 2) @ places)
            scores = scores.unflatten(2, (-1, text.shape[1]))
            if text_mask is not None:
                scores = scores.masked_fill_(~text_mask[:, None, None], float('-inf'))
            weights = scores.softmax(3).flatten(2)
            place_change = torch.baddbmm(place_change, weights, values[:, part].flatten(1, 2))
        from_places = torch.cat(gathered, dim=1).unflatten(1, heads)
        from_places = from_places @ self.image_value.weight.unflatten(0, heads).transpose(1, 2)
        from_places = from_places + self.image_value.bias.unflatten(0, heads)[:, None]
        return place_change, self.text_out(self._joined(from_places))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, heads, N, E / heads]."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _joined(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


@torch.no_grad()
def scores_are_small(query: Tensor, key: Tensor) -> bool:
    """Whether no score can reach the clamp: the longest query times the longest key is below it."""
    longest = query.float().norm(dim=-1).max() * key.float().norm(dim=-1).max()
    return bool(longest < LIMIT / 2)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    place_values: Tensor,
    text_values: Tensor,
    text_mask: Tensor | None,
    place_mask: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Both directions without a tensor of scores; exact where the clamps do nothing."""
    attend = F.scaled_dot_product_attention
    from_text = attend(query, key, text_values, _key_mask(text_mask), dropout, scale=1.0)
    from_places = attend(key, query, place_values, _key_mask(place_mask), dropout, scale=1.0)
    return from_text, from_places


def _clamped_attention(
    query: Tensor,
    key: Tensor,
    place_values: Tensor,
    text_values: Tensor,
    text_mask: Tensor | None,
    place_mask: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Both directions from scores that are clamped, in full precision."""
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() @ key.float().transpose(-1, -2)).clamp(-LIMIT, LIMIT)
        back = scores.transpose(-1, -2)
        back = (back - back.amax(-1, keepdim=True)).clamp(min=-LIMIT)
        for_places, for_text = _key_mask(place_mask), _key_mask(text_mask)
        if for_places is not None:
            back = back.masked_fill(~for_places, float('-inf'))
        if for_text is not None:
            scores = scores.masked_fill(~for_text, float('-inf'))
        from_text = F.dropout(scores.softmax(-1), dropout) @ text_values.float()
        from_places = F.dropout(back.softmax(-1), dropout) @ place_values.float()
    return from_text.to(query.dtype), from_places.to(query.dtype)


def _key_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None, None, :]


class TextLayer(nn.Module):
    """A transformer layer of BERT's kind for the text stream, with clamped scores and activations.

    Args:
        channels: W of the tokens.
        num_heads: attention heads.
        hidden_channels: width of the feed-forward part.
        dropout: of attention, and of what is added to the stream.
    """

    def __init__(self, channels: int, num_heads: int, hidden_channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f'channels {channels} is not divisible by num_heads {num_heads}')
        self.num_heads = num_heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.attention_out = nn.Linear(channels, channels)
        self.norm_attention = nn.LayerNorm(channels, eps=1e-12)
        self.expand = nn.Linear(channels, hidden_channels)
        self.contract = nn.Linear(hidden_channels, channels)
        self.norm_out = nn.LayerNorm(channels, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """[B, L, W] and token_mask [B, L], True = real -> [B, L, W]."""
        attended = self.dropout(self.attention_out(self._attend(text, text_mask)))
        text = self.norm_attention(text + attended)
        expanded = F.gelu(self.expand(text).clamp(-LIMIT, LIMIT)).clamp(-LIMIT, LIMIT)
        added = self.dropout(self.contract(expanded)).clamp(-LIMIT, LIMIT)
        return self.norm_out(text + added).clamp(-LIMIT, LIMIT)

    def _attend(self, text: Tensor, text_mask: Tensor) -> Tensor:
        query, key, value = (
            layer(text).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).float().clamp(-LIMIT, LIMIT)
        scores = scores.masked_fill(~text_mask[:, None, None, :], torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(-1).to(value.dtype))
        return (weights @ value).transpose(1, 2).flatten(2)
