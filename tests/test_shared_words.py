"""Data and model must number the same words alike, or every label would be learned as another word."""

import pytest
from torch import nn
from toy_lseg import NAMES, segmentor, words

from ovd.apis.runner import check_classes
from ovd.clip.text_embeddings import TextEmbeddings
from ovd.text.vocabulary import Vocabulary


def test_equal_words_pass() -> None:
    check_classes(segmentor(), {'classes': NAMES})
    check_classes(segmentor(), {})
    check_classes(nn.Linear(1, 1), {'classes': ('a',)})


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
    model._text_embeddings = model._text_source = None
    check_classes(model, {'classes': NAMES})
