"""From scores of tokens to scores of the words that they belong to."""

import torch
from torch import Tensor

AGGREGATIONS = ('mean', 'max', 'geometric')


def class_scores(logits: Tensor, token_map: Tensor, aggregation: str = 'mean') -> Tensor:
    """Probabilities of C entities from the logits of L tokens.

    Args:
        logits: [N, L].
        token_map: [C, L] bool, the tokens of each entity; an entity without tokens scores 0.
        aggregation: of the sigmoids of an entity's tokens: 'mean' (all published numbers), 'max', or
            'geometric' (mean of the logarithms).
    Returns:
        [N, C].
    Raises:
        ValueError: an unknown aggregation, or shapes that do not fit.

    Source: Li et al., CVPR 2022, Sec. 3.1: a phrase's probability is the mean over its tokens.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f'aggregation must be one of {list(AGGREGATIONS)}, got {aggregation!r}')
    if logits.shape[-1] != token_map.shape[-1]:
        raise ValueError(f'{logits.shape[-1]} token logits came with a map of {token_map.shape[-1]} tokens')
    logits = logits.float()
    if aggregation == 'max':
        return _largest(logits.sigmoid(), token_map)
    counts = token_map.sum(1, keepdim=True)
    weights = (token_map / counts.clamp(min=1)).to(logits.dtype).T
    if aggregation == 'mean':
        return logits.sigmoid() @ weights
    return (torch.nn.functional.logsigmoid(logits) @ weights).exp() * (counts[:, 0] > 0)


def _largest(probs: Tensor, token_map: Tensor) -> Tensor:
    """[N, C], the largest probability of each entity's tokens."""
    counts = token_map.sum(1)
    longest = max(int(counts.max()), 1) if len(counts) else 1
    # Tokens of each entity first, then its place-holder, a column of zeros behind the last token.
    tokens = torch.arange(token_map.shape[1], device=token_map.device)
    order = torch.where(token_map, tokens, token_map.shape[1]).sort(dim=1).values[:, :longest]
    return torch.cat([probs, probs.new_zeros(len(probs), 1)], dim=1)[:, order].amax(2)
