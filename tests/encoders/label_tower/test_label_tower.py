"""A classifier and a sentence encoder as one open-vocabulary tower: the formula, the checks, real weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ovd.checkpoints.reading import UnsafeCheckpointError
from ovd.encoders.label_tower.classifier import Classifier, in_order_of
from ovd.encoders.label_tower.tower import LabelTower, SentenceWords, combine, load_label_tower
from ovd.encoders.text_source import TextSource, open_text_encoder
from ovd.encoders.tokens.bert_tokens import BertText
from ovd.regions.embedding import open_image_tower
from tests.toys.bert import write_bert

LABELS = ['cat', 'dog', 'cup', 'bird', 'car']


class ToyNet(nn.Module):
    """A classifier of five labels: what matters is the mean colour."""

    num_outputs, image_size, mean, std = 5, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels / 127.5 - 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.mean((2, 3))) * 10


@pytest.fixture(scope='module')
def words(tmp_path_factory: pytest.TempPathFactory) -> BertText:
    torch.manual_seed(0)
    return BertText(write_bert(tmp_path_factory.mktemp('bert')), frozen=True)


def tower(words: BertText, **options: Any) -> LabelTower:
    torch.manual_seed(1)
    net: Any = ToyNet()
    return LabelTower(net, SentenceWords(words), **{'labels': LABELS, 'top_k': 2, **options})


def test_the_combination_by_hand() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    p = logits.softmax(1)[0]
    expected = (p[0] * labels[0] + p[2] * labels[2]) / (p[0] + p[2])
    torch.testing.assert_close(combine(logits, labels, 2)[0], expected)
    torch.testing.assert_close(combine(logits, labels, 1)[0], labels[0])


def test_both_halves_meet_in_one_space(words: BertText) -> None:
    found = tower(words)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    vectors = found.encode(found.normalize(pixels))
    assert vectors.shape == (3, found.text.embed_dim)
    logits = found.classifier(found.normalize(pixels))
    sentences = F.normalize(words.encode([f'a photo of a {label}' for label in LABELS]), dim=1)
    torch.testing.assert_close(vectors, combine(logits, sentences, 2))
    assert found.encode(torch.zeros(0, 3, 8, 8)).shape == (0, found.embed_dim)


def test_the_fingerprint_belongs_to_the_pair(words: BertText) -> None:
    one, other, template = tower(words), tower(words, top_k=3), tower(words, label_template='{}')
    assert one.fingerprint == one.text.fingerprint == tower(words).fingerprint
    assert len({one.fingerprint, other.fingerprint, template.fingerprint, words.fingerprint}) == 4


def test_labels_and_outputs_must_agree(words: BertText) -> None:
    with pytest.raises(ValueError, match='4 labels came with a classifier of 5 outputs'):
        tower(words, labels=LABELS[:4])
    with pytest.raises(ValueError, match='top_k'):
        tower(words, top_k=6)


def test_weights_are_taken_in_order_where_they_fit() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    theirs = {
        f'_x{i}.{key.rpartition(".")[2]}': value + 1
        for i, (key, value) in enumerate(module.state_dict().items())
    }
    found = in_order_of(module, theirs)
    assert list(found) == list(module.state_dict())
    torch.testing.assert_close(found['0.weight'], module[0].weight.detach() + 1)
    reordered = dict(reversed(theirs.items()))
    assert list(in_order_of(module, reordered)) == list(reordered)


def test_bad_classifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='resnet19'):
        Classifier('resnet19', 'random:0')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        Classifier('test_vit', str(tmp_path / 'nowhere.pth'))
    torch.save({'weights': print}, tmp_path / 'trapped.pth')
    with pytest.raises(UnsafeCheckpointError, match='print'):
        Classifier('test_vit', str(tmp_path / 'trapped.pth'))


def test_kinds_of_towers() -> None:
    with pytest.raises(ValueError, match='dino'):
        open_image_tower({'kind': 'dino'})
    with pytest.raises(ValueError, match='dino'):
        open_text_encoder({'kind': 'dino'})


def test_real_weights_tell_a_cat_from_other_things() -> None:
    data = pytest.importorskip('skimage.data')
    try:
        found = load_label_tower()
    except ImportError as error:
        pytest.skip(str(error))
    assert found is open_image_tower({'kind': 'labels'})
    source = TextSource('cat, cup of coffee, rocket, person', 'single', encoder={'kind': 'labels'})
    text = source.embed(source.vocabulary)
    assert text.encoder_fingerprint == found.fingerprint
    for label, picture in enumerate((data.chelsea(), data.coffee(), data.rocket())):
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (224, 224), mode='bilinear', antialias=True)
        vector = F.normalize(found.encode(found.normalize(pixels)), dim=1)
        assert int((vector @ text.embeddings.T).argmax()) == label
