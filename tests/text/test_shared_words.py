"""Data and model must number the same words alike, or every label would be learned as another word."""

from types import SimpleNamespace
from typing import Any

import pytest
from mmdet.datasets.transforms import PackDetInputs

from ovd.datasets.sample_traits import SampleTraits
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.text.vocabulary import Vocabulary
from ovd.training.checks import check_classes, check_packing
from tests.toys.lseg import NAMES, segmentor, words


def test_equal_words_pass() -> None:
    check_classes(segmentor(), {'classes': NAMES})
    check_classes(segmentor(), {})


def test_names_shown_to_users_pass() -> None:
    plain = words(('a', 'b'))
    vocabulary = Vocabulary(('a', 'b'), labels=('first', 'second'))
    model = segmentor(text=TextEmbeddings(plain.embeddings, vocabulary, (), ''))
    check_classes(model, {'classes': ('first', 'second')})
    check_classes(model, {'classes': ('a', 'b')})


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('cat', 'grass', 'dog', 'sky', 'road'), "class 1 is 'grass' in the data .* and 'dog' in the model"),
        (NAMES[:4], r"class 4 is None in the data \(4 classes\) and 'road' in the model \(5\)"),
        ((*NAMES, 'tree'), "class 5 is 'tree' in the data .* and None in the model"),
    ],
)
def test_other_words_or_another_order_are_refused(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_classes(segmentor(), {'classes': classes})


def test_a_model_that_has_no_words_yet_passes() -> None:
    model = segmentor()
    model._encoded = model._text_source = None
    check_classes(model, {'classes': NAMES})


def data_of(meta_keys: tuple[str, ...], said: tuple[str, ...] = ('text', 'tokens_positive')) -> Any:
    step = SampleTraits()
    step.sample_keys = said
    return SimpleNamespace(pipeline=SimpleNamespace(transforms=[step, PackDetInputs(meta_keys=meta_keys)]))


def test_what_samples_say_must_reach_a_model_that_reads_it() -> None:
    """Without its text a sample's labels would count as classes of the vocabulary."""
    reader: Any = SimpleNamespace(sample_keys=('text', 'tokens_positive', 'tokens_ignored'))
    check_packing(reader, data_of(('img_id', 'text', 'tokens_positive')))
    check_packing(reader, data_of(('img_id',), said=()))
    check_packing(reader, SimpleNamespace())
    check_packing(SimpleNamespace(sample_keys=()), data_of(('img_id',)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"PackDetInputs.*'tokens_positive'"):
        check_packing(reader, data_of(('img_id', 'text')))
    with pytest.raises(ValueError, match=r"'tokens_ignored'.*meta_keys"):
        check_packing(reader, data_of(('text',), said=('tokens_ignored',)))
