"""Prompts as features: cut, encoded once, kept by content and by the state of the weights."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from ovd.encoders.tokens.bert_tokens import BertText
from ovd.encoders.tokens.prompt_builder import PromptBuilder
from ovd.encoders.tokens.prompt_features import PromptBatch, PromptEncoder, encode_batch
from ovd.text.phrases import caption_prompt, class_prompt, locate_phrases
from tests.toys.bert import write_bert

pytest.importorskip('transformers')


@pytest.fixture
def encoder(tmp_path: Path) -> PromptEncoder:
    return PromptEncoder(BertText(write_bert(tmp_path), max_tokens=16))


@pytest.fixture
def builder(encoder: PromptEncoder) -> PromptBuilder:
    return PromptBuilder(encoder.encoder.tokenizer)


def test_a_long_list_becomes_prompts_that_fit(encoder: PromptEncoder, builder: PromptBuilder) -> None:
    names = ['red star', 'c++', 'car', 'cart', 'dog', '東京', 'big red dog', 'a', 'cafés'] * 3
    prompts = builder.name_prompts(names)
    assert [label for prompt in prompts for label in prompt.labels] == list(range(27))
    assert max(len(prompt.token_ids) for prompt in prompts) <= 16
    for state in encoder.encode(prompts):
        assert len(state.hidden) == len(state.prompt.offsets)
        assert list(state.prompt.offsets) == builder.tokenizer.offsets(state.prompt.text)
        assert state.token_map.any(1).all()
        assert (state.token_map.sum(0) <= 1).all()
    assert len(builder.name_prompts(names, per_prompt=2)) >= 14
    finals = builder.name_prompts(['dog'] * 14, final='. ')
    assert max(len(prompt.token_ids) for prompt in finals) <= 16


def test_a_long_caption_becomes_windows_that_fit(encoder: PromptEncoder, builder: PromptBuilder) -> None:
    caption = 'a red star above a big ring and ' * 6 + 'a dog'
    phrases = ['a red star', 'a big ring', 'a red star', 'a dog']
    windows = builder.caption_prompts(caption_prompt(caption, locate_phrases(caption, phrases)))
    assert sorted(label for window in windows for label in window.labels) == [0, 1, 2, 3]
    assert all(state.hidden.isfinite().all() for state in encoder.encode(windows))


def test_a_prompt_is_encoded_once_for_a_state_of_the_weights(encoder: PromptEncoder) -> None:
    prompts = [class_prompt(['dog', 'cat']), class_prompt(['red star'])]
    first = encoder.encode(prompts)
    with patch.object(encoder.encoder, 'forward', side_effect=AssertionError):
        again = encoder.encode(prompts[::-1])
    assert again[1].hidden is first[0].hidden
    encoder.encoder.train()
    with torch.no_grad():
        next(encoder.encoder.parameters()).add_(0.5)
    changed = encoder.encode(prompts)
    assert encoder.encoder.training
    assert not torch.equal(changed[0].hidden, first[0].hidden)
    encoder.forget()
    torch.testing.assert_close(encoder.encode(prompts)[0].hidden, changed[0].hidden)


def test_a_batch_is_the_prompts_padded(encoder: PromptEncoder) -> None:
    prompts = [class_prompt(['dog', 'red star']), class_prompt(['c++'])]
    encoder.encoder.eval()
    batch, together = PromptBatch.of(encoder.encode(prompts)), encode_batch(encoder.encoder, prompts)
    assert torch.equal(batch.features.mask, together.features.mask)
    assert batch.labels == together.labels == [(0, 1), (0,)]
    for ours, theirs in zip(batch.token_maps, together.token_maps):
        assert torch.equal(ours, theirs)
    real = batch.features.mask[..., None]
    torch.testing.assert_close(batch.features.hidden * real, together.features.hidden * real)
    assert batch.token_maps[0].nonzero().tolist() == [[0, 1], [1, 3], [1, 4]]


def test_only_so_many_prompts_are_kept(tmp_path: Path) -> None:
    encoder = PromptEncoder(BertText(write_bert(tmp_path)), capacity=2)
    encoder.encode([class_prompt([name]) for name in ('dog', 'cat', 'bird')])
    assert len(encoder._cache) == 2


def test_names_that_no_prompt_can_hold_are_named(builder: PromptBuilder) -> None:
    with pytest.raises(ValueError, match='20 tokens'):
        builder.name_prompts(['dog', 'red dog ' * 10])
    with pytest.raises(ValueError, match='u200b'):
        builder.name_prompts(['dog', '\u200b'])
    prompts = builder.name_prompts(['dog'] * 14, final=' and a cat.')
    assert max(len(prompt.token_ids) for prompt in prompts) <= 16


def test_a_prompt_is_tokenized_once(encoder: PromptEncoder, builder: PromptBuilder) -> None:
    (prompt,) = builder.name_prompts(['red star', 'dog'])
    assert prompt == class_prompt(['red star', 'dog'])
    assert prompt.positions == ((1, 2), (4,))
    with patch.object(type(builder.tokenizer), 'encode', side_effect=AssertionError):
        assert builder.tokenizer.tokenize(prompt) is prompt
        encoder.encode([prompt])


def test_a_frozen_encoder_keeps_its_state(encoder: PromptEncoder) -> None:
    """What it remembers is not forgotten between two questions."""
    encoder.encoder.eval()
    with patch.object(encoder.encoder, 'train', side_effect=AssertionError):
        encoder.encode([class_prompt(['dog'])])
