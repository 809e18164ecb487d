"""Grouping of image segments by learned group tokens, the core of GroupViT.

Source: Xu et al., GroupViT, CVPR 2022, Sec. 3.1, eq. 2-5; where the released model differs from the paper
(attention before the assignment, channel MLP, the count plus one of the average) this follows the model.
Reading order: GroupingOutput, the assignment (Assignment and its three functions), GroupingBlock and its
parts, GroupProjector.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupingOutput(NamedTuple):
    """Output of a grouping image encoder for B images.

    Attributes:
        features: [B, G, C], the final groups after the last norm.
        pooled: [B, C], the image.
        soft: for each grouping, assignment of its L segments to its S2 groups without noise, [B, S2, L]
            float32; columns sum to one. L of the first grouping are the patches, S2 of the last is G.
        hard: as ``soft``, the assignments that the features were computed with: one-hot unless assignment is
            soft; with noise in training.
        grid: (h, w) of the patches.
        tokens: [B, h * w, C], features of the patches in the space of the groups, if any.
    """

    features: Tensor
    pooled: Tensor
    soft: tuple[Tensor, ...]
    hard: tuple[Tensor, ...]
    grid: tuple[int, int]
    tokens: Tensor | None = None


def gumbel_noise(like: Tensor) -> Tensor:
    """Samples of Gumbel(0, 1) in the shape of ``like``; float32 and finite."""
    exponential = torch.empty_like(like, dtype=torch.float32).exponential_()
    return -exponential.clamp_(min=torch.finfo(torch.float32).tiny).log()


def soft_assignment(logits: Tensor, noise: Tensor | float = 0.0, tau: float = 1.0) -> Tensor:
    """Distribution of each segment over the groups, float32.

    Args:
        logits: [..., S2, L], groups by segments.
        noise: added to the logits.
        tau: temperature; divides.
    """
    return ((logits.float() + noise) / tau).softmax(dim=-2)


def straight_through(probs: Tensor) -> Tensor:
    """One-hot choice of the most probable group, with the gradient of the probabilities [..., S2, L]."""
    return _StraightThrough.apply(probs)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor) -> Tensor:
        return torch.zeros_like(probs).scatter_(-2, probs.argmax(-2, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Assignment(nn.Module):
    """Assignment of segments to groups, in float32.

    Args:
        hard: one-hot choices with a straight-through gradient, else plain softmax and no noise.
        gumbel: add Gumbel noise in training; a hard assignment only.
        tau: temperature of the noisy softmax whose gradient is used in training.
    """

    def __init__(self, hard: bool = True, gumbel: bool = True, tau: float = 1.0) -> None:
        super().__init__()
        self.hard = hard
        self.gumbel = gumbel
        self.tau = tau

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits [..., S2, L] -> the assignment to use and the noise-free soft one, both of that shape."""
        soft = soft_assignment(logits)
        if not self.hard:
            return soft, soft
        if self.training and self.gumbel:
            return straight_through(soft_assignment(logits, self.noise(logits), self.tau)), soft
        return straight_through(soft), soft

    def noise(self, logits: Tensor) -> Tensor:
        """Noise added to the logits in training."""
        return gumbel_noise(logits)


class Grouped(NamedTuple):
    """Result of one grouping: segments [B, S2, C'], and the assignments [B, S2, L] of ``GroupingOutput``."""

    segments: Tensor
    soft: Tensor
    hard: Tensor


class GroupingBlock(nn.Module):
    """Merge L segments into S2 groups, queried by S1 group tokens.

    Args:
        dim: C, width of segments and tokens.
        num_tokens: S1.
        num_groups: S2.
        num_heads: of the attention before the assignment; the assignment itself has one head.
        out_dim: C', by default C.
        token_ratio: hidden width of the token mix over C.
        channel_ratio: hidden width of the channel MLP over C.
        cross_ratio: hidden width over C of the MLP after the attention.
        eps: added to the number of members in a group's mean. At 1 an empty group is zero with bounded
            gradient; small values make training diverge.
        residual: add the group token to the mean of its members.
        assignment: by default hard with Gumbel noise in training.
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        num_groups: int,
        num_heads: int,
        out_dim: int | None = None,
        token_ratio: float = 0.5,
        channel_ratio: float = 4.0,
        cross_ratio: float = 4.0,
        eps: float = 1.0,
        residual: bool = True,
        assignment: Assignment | None = None,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        self.norm_tokens = nn.LayerNorm(dim)
        self.norm_segments = nn.LayerNorm(dim)
        self.mix = TokenMix(num_tokens, int(token_ratio * dim), num_groups)
        self.norm_mixed = nn.LayerNorm(dim)
        self.cross = CrossAttentionBlock(dim, num_heads, cross_ratio)
        self.merge = Merge(dim, eps, assignment or Assignment())
        self.residual = residual
        self.norm_merged = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(channel_ratio * dim), out_dim)
        self.reduction = (
            nn.Identity()
            if out_dim == dim
            else nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim, bias=False))
        )

    def forward(self, segments: Tensor, tokens: Tensor) -> Grouped:
        """segments [B, L, C] and tokens [B, S1, C] -> S2 groups and the assignments."""
        segments = self.norm_segments(segments)
        groups = self.cross(self.norm_mixed(self.mix(self.norm_tokens(tokens))), segments)
        merged, soft, hard = self.merge(groups, segments)
        if self.residual:
            merged = merged + groups
        return Grouped(self.reduction(merged) + self.mlp(self.norm_merged(merged)), soft, hard)


class Merge(nn.Module):
    """One-head attention over groups: each segment joins a group, each group averages its members.

    Args:
        dim: C.
        eps: see ``GroupingBlock``.
        assignment: of segments to groups.
    """

    def __init__(self, dim: int, eps: float, assignment: Assignment) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.assignment = assignment
        self.eps = eps

    def forward(self, groups: Tensor, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """groups [B, S2, C] and segments [B, L, C] -> means [B, S2, C], soft and hard [B, S2, L]."""
        query, key = self.query(groups), self.key(segments)
        with torch.autocast(query.device.type, enabled=False):
            logits = query.float() @ key.float().transpose(-2, -1) * query.shape[-1] ** -0.5
            hard, soft = self.assignment(logits)
        return self.proj(average(hard, self.value(segments), self.eps)), soft, hard


class CosineMerge(nn.Module):
    """As ``Merge``, with cosine logits, and values other than the keys.

    Features with a large common component have similar cosines, and one group takes every segment; ``center``
    removes that component.

    Args:
        dim: C.
        scale: initial multiplier of the cosines; learned.
        max_scale: its upper bound.
        center: module that centres projected keys [N, C], such as a batch norm, if any.
        eps: see ``GroupingBlock``.
        assignment: by default hard with Gumbel noise in training.
    """

    def __init__(
        self,
        dim: int,
        scale: float = 10.0,
        max_scale: float = 50.0,
        center: nn.Module | None = None,
        eps: float = 1.0,
        assignment: Assignment | None = None,
    ) -> None:
        super().__init__()
        self.norm_groups = nn.LayerNorm(dim)
        self.norm_keys = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.center = center
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.max_log_scale = math.log(max_scale)
        self.eps = eps
        self.assignment = assignment or Assignment()

    def forward(self, groups: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """groups [B, S2, C], keys [B, L, C], values [B, L, V] -> means [B, S2, V], soft, hard [B, S2, L]."""
        query, key = self.query(self.norm_groups(groups)), self.key(self.norm_keys(keys))
        if self.center is not None:
            key = self.center(key.flatten(0, 1)).unflatten(0, key.shape[:2])
        with torch.autocast(query.device.type, enabled=False):
            query, key = F.normalize(query.float(), dim=-1), F.normalize(key.float(), dim=-1)
            scale = self.log_scale.float().clamp(max=self.max_log_scale).exp()
            hard, soft = self.assignment(scale * query @ key.transpose(-2, -1))
        return average(hard, values, self.eps), soft, hard


def average(assignment: Tensor, values: Tensor, eps: float) -> Tensor:
    """Sum of each group's members over their number plus eps: [B, S2, L] and [B, L, C] -> [B, S2, C]."""
    weights = assignment / (assignment.sum(-1, keepdim=True) + eps)
    return weights.to(values.dtype) @ values


class CrossAttentionBlock(nn.Module):
    """Cross attention from groups to segments; post-norm, for normed inputs.

    Args:
        dim: C.
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP over C.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, groups: Tensor, segments: Tensor) -> Tensor:
        """groups [B, S2, C], segments [B, L, C] -> [B, S2, C]."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, groups), (self.key, segments), (self.value, segments))
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        groups = groups + self.proj(seen.transpose(1, 2).flatten(2))
        return self.norm(groups + self.mlp(self.norm_mlp(groups)))


class GroupProjector(nn.Module):
    """Project the group tokens of one stage, after its blocks, to initialise those of the next.

    Args:
        dim: C.
        num_tokens: S1, number of input tokens.
        num_out: number of output tokens.
        out_dim: width of the output tokens.
        token_ratio: hidden width of the token mix over C.
    """

    def __init__(
        self, dim: int, num_tokens: int, num_out: int, out_dim: int, token_ratio: float = 0.5
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = TokenMix(num_tokens, int(token_ratio * dim), num_out)
        self.widen = (
            nn.Identity()
            if out_dim == dim
            else nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim, bias=False))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S1, C] -> [B, num_out, out_dim]."""
        return self.widen(self.mix(self.norm(tokens)))


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis."""

    def __init__(self, dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., out_dim]."""
        return self.fc2(F.gelu(self.fc1(x)))


class TokenMix(Mlp):
    """An ``Mlp`` on the token axis: S1 tokens to S2."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, S1, C] -> [B, S2, C]."""
        return super().forward(x.transpose(-2, -1)).transpose(-2, -1)
