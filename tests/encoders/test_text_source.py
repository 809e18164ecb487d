"""Class vectors that a model takes from a file: as they are, and exchanged for the control experiment."""

from pathlib import Path

import pytest
import torch

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.encoders.text_encoder import TextEncoder
from ovd.encoders.text_source import TextSource
from ovd.text.vocabulary import Vocabulary
from tests.toys.clip import write_architecture

NAMES = ['ring', 'star', 'heart', 'fish', 'crown']


def write_words(path: Path, novel: list[str]) -> Vocabulary:
    vocabulary = Vocabulary.parse({'names': NAMES, 'novel': novel})
    TextEmbeddings(torch.eye(5), vocabulary, ('{}',), 'abc').save(path)
    return vocabulary


@pytest.mark.parametrize(
    ('novel', 'rows'),
    [
        (['star', 'fish', 'crown'], [0, 3, 2, 4, 1]),
        (['star', 'fish'], [0, 3, 2, 1, 4]),
        (['star'], [1, 2, 3, 4, 0]),
        ([], [1, 2, 3, 4, 0]),
    ],
)
def test_shuffled_words_get_the_vectors_of_one_another(
    tmp_path: Path, novel: list[str], rows: list[int]
) -> None:
    path = tmp_path / 'words.vocab.safetensors'
    vocabulary = write_words(path, novel)
    plain = TextSource(embeddings=path).embed(vocabulary)
    shuffled = TextSource(embeddings=path, shuffled=True).embed(vocabulary)
    assert plain.embeddings.equal(torch.eye(5))
    assert shuffled.embeddings.equal(torch.eye(5)[rows])
    assert shuffled.vocabulary == plain.vocabulary
    assert shuffled.encoder_fingerprint == 'abc'


def test_a_file_of_another_encoder_than_the_configured_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'words.vocab.safetensors'
    clip = {'model': str(write_architecture(tmp_path / 'arch.json')), 'pretrained': 'random:1'}
    vocabulary = write_words(path, [])
    for words in (vocabulary, Vocabulary(['comb'])):
        with pytest.raises(ValueError, match=r'words\.vocab\.safetensors: made with encoder abc, but'):
            TextSource(embeddings=path, encoder=clip).embed(words)
    TextEmbeddings.build(vocabulary, '{}', TextEncoder(**clip)).save(path)
    assert len(TextSource(embeddings=path, encoder=clip).embed(vocabulary)) == 5
    assert len(TextSource(embeddings=path, encoder=clip).embed(Vocabulary(['comb']))) == 1


def test_a_file_serves_where_the_tower_is_absent_or_its_maker_unknown(tmp_path: Path) -> None:
    path = tmp_path / 'words.vocab.safetensors'
    vocabulary = write_words(path, [])
    source = TextSource(embeddings=path, encoder={'model': str(tmp_path / 'absent')})
    assert source.embed(vocabulary).embeddings.equal(torch.eye(5))
    TextEmbeddings(torch.eye(5), vocabulary, (), '').save(path)
    clip = {'model': str(write_architecture(tmp_path / 'arch.json')), 'pretrained': 'random:1'}
    assert TextSource(embeddings=path, encoder=clip).embed(vocabulary).embeddings.equal(torch.eye(5))


def test_a_tower_whose_weights_are_a_file_is_looked_at(tmp_path: Path) -> None:
    path, weights = tmp_path / 'words.vocab.safetensors', tmp_path / 'w.pt'
    vocabulary = write_words(path, [])
    weights.write_text('no weights')
    with pytest.raises(ValueError, match=r'w\.pt: refused'):
        TextSource(embeddings=path, encoder={'model': 'RN50', 'pretrained': str(weights)}).embed(vocabulary)
