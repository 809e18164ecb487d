"""Masked language modelling: which tokens are hidden, the head against transformers', the loss."""

import math

import pytest
import torch

from ovd.models.glip.masked_language import NOT_ASKED, LanguageHead, hide_tokens

MASK = 1


def test_shares_of_hidden_tokens() -> None:
    torch.manual_seed(0)
    ids = torch.full((400, 100), 7)
    may_hide = torch.ones_like(ids, dtype=torch.bool)
    may_hide[:, 50:] = False
    hidden = hide_tokens(ids, may_hide, MASK, vocab_size=1000)
    is_asked = hidden.labels != NOT_ASKED
    assert not is_asked[:, 50:].any()
    assert (hidden.labels[is_asked] == 7).all()
    assert (hidden.ids[~is_asked] == 7).all()
    assert is_asked[:, :50].float().mean().item() == pytest.approx(0.15, abs=0.01)
    seen = hidden.ids[is_asked]
    assert (seen == MASK).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (seen == 7).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert seen.min() >= 0
    assert seen.max() < 1000
    assert len(seen.unique()) > 100


def test_shares_can_be_chosen() -> None:
    ids = torch.arange(10, 40).reshape(2, 15)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    masked = hide_tokens(ids, everywhere, MASK, 50, rate=1.0, mask_share=1.0, random_share=0.0)
    assert (masked.ids == MASK).all()
    assert torch.equal(masked.labels, ids)
    kept = hide_tokens(ids, everywhere, MASK, 50, rate=1.0, mask_share=0.0, random_share=0.0)
    assert torch.equal(kept.ids, ids)
    assert torch.equal(kept.labels, ids)
    never = hide_tokens(ids, everywhere, MASK, 50, rate=0.0)
    assert torch.equal(never.ids, ids)
    assert (never.labels == NOT_ASKED).all()
    for wrong in ({'rate': 1.5}, {'mask_share': 0.8, 'random_share': 0.3}, {'random_share': -0.1}):
        with pytest.raises(ValueError, match='are probabilities'):
            LanguageHead(4, 10, MASK, **wrong)


def test_head_equals_that_of_transformers() -> None:
    bert = pytest.importorskip('transformers.models.bert.modeling_bert')
    config = pytest.importorskip('transformers').BertConfig(hidden_size=12, vocab_size=20)
    torch.manual_seed(0)
    peer = bert.BertLMPredictionHead(config)
    torch.nn.init.normal_(peer.decoder.bias)
    head = LanguageHead(12, 20, MASK)
    parts = {
        head.dense: peer.transform.dense,
        head.norm: peer.transform.LayerNorm,
        head.decoder: peer.decoder,
    }
    for ours, theirs in parts.items():
        ours.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 5, 12)
    torch.testing.assert_close(head(features), peer(features), atol=1e-6, rtol=1e-5)


def test_only_asked_tokens_count() -> None:
    head = LanguageHead(4, 8, MASK)
    with torch.no_grad():
        head.decoder.weight.zero_()
        head.decoder.bias.copy_(torch.tensor([0.0, 0, 0, math.log(3), 0, 0, 0, 0]))
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.full((2, 3), NOT_ASKED)
    labels[0, 1], labels[1, 2] = 3, 5
    losses = head.token_losses(tokens, labels)
    assert losses.tolist() == pytest.approx([math.log(10 / 3), math.log(10)])
    losses.sum().backward()
    # Gradient of the bias: probabilities less the truth, of the two tokens that are asked for.
    expected = torch.full((8,), 0.2)
    expected[3] = 0.6
    expected -= torch.nn.functional.one_hot(torch.tensor(3), 8) + torch.nn.functional.one_hot(
        torch.tensor(5), 8
    )
    torch.testing.assert_close(head.decoder.bias.grad, expected)


def test_gradients_reach_the_asked_tokens_alone() -> None:
    torch.manual_seed(0)
    head = LanguageHead(4, 8, MASK)
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.full((2, 3), NOT_ASKED)
    labels[0, 1] = 3
    head.token_losses(tokens, labels).sum().backward()
    assert tokens.grad is not None
    reached = tokens.grad.abs().sum(2) > 0
    assert reached.tolist() == [[False, True, False], [False, False, False]]
    assert all(parameter.grad is not None for parameter in head.parameters())
    nothing = head.token_losses(tokens, torch.full((2, 3), NOT_ASKED))
    assert nothing.shape == (0,)
