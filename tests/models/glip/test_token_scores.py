"""Scores of words from scores of tokens: by hand, and the stored cases of the reference."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ovd.models.glip.token_scores import class_scores
from tests.helpers import shared_path


def token_map(tokens: list[list[int]], length: int) -> Tensor:
    found = torch.zeros(len(tokens), length, dtype=torch.bool)
    for row, positions in enumerate(tokens):
        found[row, positions] = True
    return found


def test_by_hand() -> None:
    logits = torch.tensor([0.2, 0.8, 0.5, 0.9]).logit().expand(3, 4)
    entities = token_map([[0], [1, 2], [], [0, 2, 3]], 4)
    expected = {
        'mean': [0.2, 0.65, 0.0, 1.6 / 3],
        'max': [0.2, 0.8, 0.0, 0.9],
        'geometric': [0.2, 0.4**0.5, 0.0, 0.09 ** (1 / 3)],
    }
    for aggregation, scores in expected.items():
        found = class_scores(logits, entities, aggregation)
        torch.testing.assert_close(found, torch.tensor(scores).expand(3, 4))
        assert class_scores(logits, entities[:0], aggregation).shape == (3, 0)


def test_huge_logits_give_no_nan() -> None:
    logits = torch.tensor([[5e4, -5e4, 0.0]])
    entities = token_map([[0, 1], []], 3)
    for aggregation in ('mean', 'max', 'geometric'):
        assert class_scores(logits, entities, aggregation).isfinite().all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"one of .* got 'median'"):
        class_scores(torch.zeros(1, 2), torch.ones(1, 2).bool(), 'median')
    with pytest.raises(ValueError, match='2 token logits came with a map of 3'):
        class_scores(torch.zeros(1, 2), torch.ones(1, 3).bool())


def test_the_stored_cases_of_the_reference() -> None:
    content = json.loads(shared_path('goldens/glip/positive_map_cases.json').read_text())
    logits = torch.from_numpy(np.load(shared_path('goldens/glip/positive_map_logits.npz'))['logits'])
    compared = 0
    for case in content['cases']:
        if not case.get('scores'):
            continue
        found = sorted((int(k), v) for k, v in case['label_to_token_truncated'].items())
        entities = token_map([tokens for _, tokens in found], logits.shape[1])
        for ours, theirs in (('mean', 'mean_truncated'), ('max', 'max'), ('geometric', 'power')):
            if theirs != 'mean_truncated' and case.get('truncated'):
                continue
            expected = torch.tensor(case['scores'][theirs]).reshape(len(logits), -1)
            scores = class_scores(logits, entities, ours)
            torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0, msg=str(case['id']))
            compared += 1
    assert compared > 50
