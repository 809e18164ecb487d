"""CLIP as a token encoder: exact characters whatever cleaning does, features of words read by themselves."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from ovd.encoders.text_encoder import TextEncoder
from ovd.encoders.tokens.build_token_encoder import (
    build_prompt_tokenizer,
    build_token_encoder,
    load_token_counter,
)
from ovd.encoders.tokens.clip_tokenizer import ClipTokenizer, align
from ovd.encoders.tokens.clip_tokens import ClipTokens
from ovd.encoders.tokens.prompt_builder import PromptBuilder
from ovd.encoders.tokens.prompt_features import PromptEncoder, encode_batch
from ovd.encoders.tokens.token_encoder import pad_ids
from ovd.text.phrases import caption_prompt, class_prompt
from tests.toys.clip import write_architecture

TEXTS = [
    'A red star, above 2 rings.',
    'the cart hit the car: c++ & a U.S. flag',
    'it’s a “dog’s” ﬁsh — naïve café',
    'decomposed cafe\u0301 in Berlin',
    'Tom &amp; Jerry &lt;3 cats',
    'schÃ¶n gesagt, sagt der Hund',
    'two  blanks\tand\na line\u00a0break',
    '東京 の 🐕‍🦺 ﬂag',
    'İstanbul and ΟΔΟΣ',
    'I’m the man’s',
    '  blanks at the ends  ',
    '',
]


def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(SimpleTokenizer())


@pytest.mark.parametrize('text', TEXTS)
def test_tokens_are_those_of_open_clip_and_know_their_characters(text: str) -> None:
    own, peer = tokenizer(), SimpleTokenizer()
    found = own.read(text)
    assert list(found.ids) == peer.encode(text)
    assert len(found.ids) == len(found.offsets) == len(found.word_indices)
    for token, (start, end) in zip(found.ids, found.offsets):
        assert 0 <= start < end <= len(text)
        # Cleaning the characters gives the token back, except for a part of a character.
        shown = peer.decode([token]).strip()
        if '�' not in shown and ' ' not in shown:
            assert shown in peer.clean_fn(text[start:end]) or not shown.isascii()
    assert list(found.offsets) == sorted(found.offsets)


def words_at(text: str) -> list[str]:
    return [text[start:end] for start, end in tokenizer().read(text).offsets]


def test_spans_survive_cleaning() -> None:
    assert words_at('Tom &amp; a Cat') == ['Tom', '&amp;', 'a', 'Cat']
    assert words_at('the “Dog’s” cafe\u0301') == ['the', '“', 'Dog', '’s', '”', 'cafe\u0301']
    assert words_at('a\u00a0 dog\n\ncat') == ['a', 'dog', 'cat']
    assert words_at('schÃ¶n dog')[-1] == 'dog'
    assert ''.join(words_at('schÃ¶n')) == 'schÃ¶n'
    assert words_at('ΟΔΟΣ dog')[-1] == 'dog'
    assert words_at('c++') == ['c', '++']
    assert words_at('a cart, a car')[1:] == ['cart', ',', 'a', 'car']
    assert words_at('&nbsp;dog&nbsp;cat')[-1] == 'cat'


def test_what_is_cleaned_together_stays_together() -> None:
    cleaned, origins = align('x&amp;y', lambda text: text.replace('&amp;', '&'))
    assert (cleaned, origins) == ('x&y', [(0, 1), (1, 6), (6, 7)])
    cleaned, origins = align('a B  c', lambda text: ' '.join(text.split()).lower())
    assert cleaned == 'a b c'
    assert [origin for char, origin in zip(cleaned, origins) if char != ' '] == [(0, 1), (2, 3), (5, 6)]


def test_tokens_of_its_own_are_refused() -> None:
    with pytest.raises(ValueError, match='<end_of_text>'):
        tokenizer().read('a dog <END_OF_TEXT> cat')
    with pytest.raises(ValueError, match='got str'):
        ClipTokenizer('clip')
    with pytest.raises(ValueError, match='SimpleTokenizer'):
        ClipTokenizer(SimpleTokenizer(reduction_mask='random'))


@pytest.fixture(scope='module')
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_architecture(tmp_path_factory.mktemp('clip') / 'toy.json')


def encoder(architecture: Path, **options: object) -> ClipTokens:
    return ClipTokens(architecture, 'random:0', **options)  # type: ignore[arg-type]


def test_whole_sentences_are_read_as_by_the_tower(architecture: Path) -> None:
    ours = encoder(architecture, features='tokens')
    texts = ['a red star', 'dog']
    ids, own_mask = pad_ids([ours.tokenizer.encode(text)[0] for text in texts], 0)
    features = ours(ids, own_mask)
    expected, mask = TextEncoder(architecture, 'random:0').encode_tokens(texts)
    assert torch.equal(own_mask, mask)
    assert ours.embed_dim == features.hidden.shape[-1] == 32
    torch.testing.assert_close(features.hidden[mask], expected[mask], atol=1e-6, rtol=0)
    assert features.embedded[1, 3:].abs().max() == 0
    assert ours.tokenizer.offsets(texts[0]) == [(0, 0), (0, 1), (2, 5), (6, 10), (0, 0)]


def joint(architecture: Path, text: str) -> torch.Tensor:
    return F.normalize(TextEncoder(architecture, 'random:0').encode([text])[0], dim=-1) * 24**0.5


def test_phrases_are_read_by_themselves(architecture: Path) -> None:
    ours = encoder(architecture)
    first = caption_prompt('the red star above a ring', [[[0, 12]], [[19, 25]]])
    batch = encode_batch(ours, [first, class_prompt(['ring', 'red star'])])
    sentence, names = batch.features.hidden
    star, ring = (joint(architecture, f'a photo of a {name}.') for name in ('red star', 'ring'))
    for row in (1, 2, 3):
        torch.testing.assert_close(sentence[row], star)
    torch.testing.assert_close(sentence[4], joint(architecture, 'above'))
    torch.testing.assert_close(sentence[5], ring)
    torch.testing.assert_close(sentence[6], ring)
    torch.testing.assert_close(names[1], ring)
    torch.testing.assert_close(names[4], star)
    assert sentence[0].abs().max() == sentence[8].abs().max() == 0
    assert batch.features.mask.sum(1).tolist() == [9, 6]


def test_tokens_of_overlapping_phrases_get_the_mean(architecture: Path) -> None:
    ours = encoder(architecture, templates='{}')
    prompt = caption_prompt('a red star', [[[0, 10]], [[6, 10]]])
    hidden = encode_batch(ours, [prompt]).features.hidden[0]
    both = joint(architecture, 'red star') + joint(architecture, 'star')
    torch.testing.assert_close(hidden[2], joint(architecture, 'red star'))
    torch.testing.assert_close(hidden[3], F.normalize(both, dim=-1) * 24**0.5)


def test_words_are_read_by_themselves_through_all_templates(architecture: Path) -> None:
    ours = encoder(architecture, features='words', templates=['a {}.', 'my {}'])
    hidden = encode_batch(ours, [class_prompt(['red star'])]).features.hidden[0]
    mean = F.normalize(joint(architecture, 'a star.') + joint(architecture, 'my star'), dim=-1) * 24**0.5
    torch.testing.assert_close(hidden[2], mean)


@pytest.mark.parametrize('features', ['tokens', 'words', 'phrases'])
def test_a_trained_tower_gets_gradients_and_a_frozen_one_is_read_once(
    architecture: Path, features: str
) -> None:
    prompts = [class_prompt(['red star', 'ring'])]
    trained = encoder(architecture, features=features, frozen=False).train()
    encode_batch(trained, prompts).features.embedded.square()[..., 0].sum().backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = encoder(architecture, features=features).train()
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    first = encode_batch(frozen, prompts).features.hidden
    torch.testing.assert_close(first, encode_batch(trained.eval(), prompts).features.hidden.detach())
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.add_(torch.randn_like(parameter))
    changed = encode_batch(frozen, prompts).features.hidden
    assert not torch.allclose(first, changed)


def test_a_frozen_tower_reads_a_phrase_once(architecture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = encoder(architecture)
    with torch.inference_mode():
        first = encode_batch(frozen, [class_prompt(['red star', 'ring'])]).features.hidden
    monkeypatch.setattr(frozen, '_encode', None)
    again = encode_batch(frozen, [class_prompt(['ring', 'red star'])]).features.hidden
    torch.testing.assert_close(again[0, 1], first[0, 4])
    (again * torch.ones_like(again).requires_grad_()).sum().backward()
    frozen.train()
    with pytest.raises(TypeError):
        encode_batch(frozen, [class_prompt(['ring'])])


def test_lists_of_any_length_are_cut_into_prompts(architecture: Path) -> None:
    names = ['red star', 'c++', 'car', 'cart', '東京', 'U.S. flag'] * 20
    for features, limit in (('tokens', 18), ('phrases', 256)):
        prompts = PromptEncoder(encoder(architecture, features=features))
        sentences = PromptBuilder(prompts.encoder.tokenizer).name_prompts(names)
        assert [label for sentence in sentences for label in sentence.labels] == list(range(len(names)))
        for state in prompts.encode(sentences):
            assert len(state.hidden) <= limit
            assert state.hidden.isfinite().all()
            assert state.token_map.any(1).all()


def test_bad_options_are_named(architecture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match='words alone'):
        encoder(architecture, features='words alone')
    with pytest.raises(ValueError, match='19'):
        encoder(architecture, features='tokens', max_tokens=19)
    with pytest.raises(ValueError, match='not causal'):
        encoder(write_architecture(tmp_path / 'open.json', text_cfg={'no_causal_mask': True}))
    with pytest.raises(ValueError, match='gpt'):
        build_token_encoder({'type': 'gpt'})
    short = encoder(architecture, features='tokens')
    with pytest.raises(ValueError, match='22 tokens'):
        short.tokenizer.tokenize(class_prompt(['dog ' * 20]))
    long = encoder(architecture)
    hidden = encode_batch(long, [class_prompt(['dog ' * 20, 'cat ' * 20])]).features.hidden
    assert hidden.isfinite().all()
    assert sum('(logged once)' in record.message for record in caplog.records) == 1


def test_encoders_and_counters_by_name(architecture: Path) -> None:
    built = build_token_encoder({'type': 'clip', 'model': architecture, 'pretrained': 'random:0'})
    assert isinstance(built, ClipTokens)
    assert len(built.fingerprint) == 16
    assert built.fingerprint == encoder(architecture).fingerprint
    assert built.fingerprint != encoder(architecture, features='words').fingerprint
    options = {'type': 'clip', 'model': architecture, 'pretrained': 'random:0'}
    assert build_prompt_tokenizer(options).fingerprint == built.tokenizer.fingerprint
    other = build_prompt_tokenizer(options | {'templates': '{}'})
    assert other.fingerprint != built.tokenizer.fingerprint
    texts = ['a red star', 'c++', '']
    counter = pickle.loads(pickle.dumps(load_token_counter('clip')))
    assert counter(texts) == built.tokenizer.count_tokens(texts) == [3, 2, 0]


def test_names_whose_signs_melt_into_the_separator_fit_their_sentences(architecture: Path) -> None:
    """'#' and the full stop after it are other tokens than each by itself."""
    prompts = PromptEncoder(encoder(architecture, features='phrases', max_tokens=13))
    sentences = PromptBuilder(prompts.encoder.tokenizer).name_prompts(['c-#'] * 9)
    assert max(len(sentence.token_ids) for sentence in sentences) <= 13
    assert len(prompts.encode(sentences)) == len(sentences)
