"""Class vectors that a model takes from a file: as they are, and exchanged for the control experiment."""

from pathlib import Path

import pytest
import torch

from ovd.clip.text_embeddings import TextEmbeddings
from ovd.models.open_vocabulary import TextSource
from ovd.text.vocabulary import Vocabulary

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
