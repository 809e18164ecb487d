"""Vocabulary: every spelling of the user's words, built-in sets, refusals."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mmdet.datasets import CocoDataset, LVISV1Dataset, Objects365V2Dataset, VOCDataset
from mmseg.datasets import ADE20KDataset, CityscapesDataset, COCOStuffDataset, PascalContextDataset59

from ovd.text.vocabulary import Vocabulary, builtin_vocabularies


def test_names_order_and_flags() -> None:
    words = Vocabulary(['cat', ' red dog ', 'bird'], novel=['bird'])
    assert words.names == words.labels == ('cat', 'red dog', 'bird')
    assert words.is_novel == (False, False, True)
    assert words.synonyms == (('cat',), ('red dog',), ('bird',))
    assert words.base_names == ('cat', 'red dog')
    assert words.novel_names == ('bird',)
    assert list(words) == list(words.names)
    assert len(words) == 3
    assert words.index('red dog') == 1
    with pytest.raises(KeyError, match="'cow' is none of the 3 classes"):
        words.index('cow')


@pytest.mark.parametrize(
    'spec',
    [
        ['cat', 'red dog', 'St. Bernard'],
        ('cat', 'red dog', 'St. Bernard'),
        [['cat'], 'red dog', ('St. Bernard',)],
        'cat . red dog . St. Bernard',
        'cat . red dog . St. Bernard .',
        'cat, red dog; St. Bernard',
        'cat; red dog\nSt. Bernard,',
        {'cat': 'cat', 'red dog': 'red dog', 'St. Bernard': 'St. Bernard'},
        {'red dog': 1, 'cat': 0, 'St. Bernard': 2},
        {'names': 'cat, red dog, St. Bernard'},
        {'names': ['cat', 'red dog', 'St. Bernard'], 'novel': []},
    ],
)
def test_every_spelling_gives_the_same_vocabulary(spec: Any) -> None:
    words = Vocabulary.parse(spec)
    assert words == Vocabulary(['cat', 'red dog', 'St. Bernard'])
    assert Vocabulary.parse(words) is words


def test_one_class_and_sentences() -> None:
    assert Vocabulary.parse('traffic light').names == ('traffic light',)
    assert Vocabulary.parse('cat. dog. bird.').names == ('cat', 'dog', 'bird')
    assert Vocabulary.parse('St. Bernard').names == ('St. Bernard',)
    assert Vocabulary.parse('a red, blue bird . a cat').names == ('a red, blue bird', 'a cat')


def test_prompts_keep_the_labels_of_the_user() -> None:
    words = Vocabulary.parse({'a small feline': 'cat', 'hound': 'dog', 'kitty': 'cat'})
    assert words.labels == ('cat', 'dog')
    assert words.names == ('a small feline', 'hound')
    assert words.synonyms == (('a small feline', 'kitty'), ('hound',))
    assert words.index('dog') == words.index('hound') == 1


def test_synonyms_as_lists_and_mappings() -> None:
    lists = Vocabulary.parse([['sofa', 'couch'], 'cat'])
    assert lists.synonyms == (('sofa', 'couch'), ('cat',))
    assert lists == Vocabulary(['sofa', 'cat'], synonyms={'sofa': ['couch']})
    assert lists == Vocabulary.parse({'names': 'sofa, cat', 'synonyms': {'sofa': ['couch', 'sofa']}})


def test_mapping_adds_to_a_built_in_set() -> None:
    words = Vocabulary.parse({'names': 'voc', 'novel': 'cat, dog', 'descriptions': {'cat': 'it purrs'}})
    assert len(words) == 20
    assert words.novel_names == ('cat', 'dog')
    assert words.descriptions[words.index('cat')] == 'it purrs'
    assert Vocabulary.parse({'names': 'coco_ov', 'novel': []}).novel_names == ()
    assert len(Vocabulary.parse({'names': 'coco_ov'}).novel_names) == 17


def test_files(tmp_path: Path) -> None:
    text = tmp_path / 'words.txt'
    text.write_text('\ufeffcat\n red dog\r\nSt. Bernard\n\n', encoding='utf-8')
    names = tmp_path / 'words.json'
    names.write_text(json.dumps(['cat', 'red dog', 'St. Bernard']))
    wanted = Vocabulary(['cat', 'red dog', 'St. Bernard'])
    assert Vocabulary.parse(str(text)) == Vocabulary.parse(text) == Vocabulary.parse(names) == wanted


def test_annotation_file_gives_classes_by_rising_id(tmp_path: Path) -> None:
    path = tmp_path / 'instances.json'
    categories = [
        {'id': 7, 'name': 'bull', 'frequency': 'r', 'synonyms': ['horned_cow']},
        {'id': 2, 'name': 'cat', 'frequency': 'f', 'synonyms': ['cat']},
    ]
    path.write_text(json.dumps({'images': [], 'categories': categories}))
    words = Vocabulary.parse(path)
    assert words.names == ('cat', 'bull')
    assert words.novel_names == ('bull',)
    assert words.synonyms == (('cat',), ('bull', 'horned_cow'))


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ([], 'at least one class name'),
        ('', 'text is empty'),
        (['cat', '  '], 'class name 1 is blank'),
        ('cat, , dog', 'class name 1 is blank'),
        (['cat', 'dog', ' cat'], "class name 2 'cat' repeats class name 0"),
        ('cat . dog . cat', "class name 2 'cat' repeats class name 0"),
        (['cat', 3], 'class 1 is 3, expected a name or a list of synonyms'),
        (['cat', []], r'class 1 is \[\], expected'),
        ([['cat', 3]], "synonym of 'cat' 1 is 3, expected a string"),
        ([['cat', 'cat']], "synonym of 'cat' 1 'cat' repeats"),
        ({'cat': 0, 'dog': 2}, r'numbers of classes must be 0 .. K - 1, got \[0, 2\]'),
        ({'cat': 0, 'dog': 'dog'}, 'all names or all numbers'),
        ({'names': 'cat', 'novels': 'cat'}, r"unknown keys \['novels'\]"),
        ({'names': 'cat', 'novel': 'dog'}, "novel class 'dog' is none of the 1 class names"),
        ({'names': 'cat', 'synonyms': {'dog': ['hound']}}, "synonyms are given for 'dog'"),
        ({'names': 'cat', 'labels': ['a', 'b']}, '1 class names came with 2 labels'),
        ({'categories': [{'id': 1}]}, 'expected an object with id and name'),
        (3, 'cannot read a vocabulary from 3'),
        (b'cat', 'cannot read a vocabulary from'),
    ],
)
def test_bad_words_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.parse(spec)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'missing\.txt does not exist'):
        Vocabulary.parse(tmp_path / 'missing.txt')
    path = tmp_path / 'broken.json'
    path.write_text('["cat"')
    with pytest.raises(ValueError, match=r'broken\.json is no valid JSON'):
        Vocabulary.parse(path)
    path.write_text('3')
    with pytest.raises(ValueError, match='holds 3, expected a list or an object'):
        Vocabulary.parse(path)
    text = tmp_path / 'gap.txt'
    text.write_text('cat\n\ndog\n')
    with pytest.raises(ValueError, match='class name 1 is blank'):
        Vocabulary.parse(text)
    text.write_bytes('caf\u00e9\n'.encode('latin-1'))
    with pytest.raises(ValueError, match=r'gap\.txt is not in UTF-8'):
        Vocabulary.parse(text)
    table = tmp_path / 'names.csv'
    table.write_text('cat,dog')
    with pytest.raises(ValueError, match=r'names\.csv is a file of an unknown kind'):
        Vocabulary.parse(str(table))
    with pytest.raises(ValueError, match="got the string 'cat'"):
        Vocabulary('cat')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='1 class names came with 2 lists of synonyms'):
        Vocabulary(['cat'], synonyms=[['cat'], ['dog']])


def test_vocabulary_is_frozen_hashable_and_picklable() -> None:
    words = Vocabulary.parse({'names': [['sofa', 'couch'], 'cat'], 'novel': 'cat'})
    with pytest.raises(AttributeError):
        words.names = ('x',)  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(words))
    assert copy == words
    assert hash(copy) == hash(words)
    assert copy.index('cat') == 1
    assert Vocabulary.parse(words.to_dict()) == words


def test_content_hash_sees_everything() -> None:
    specs = [
        {'names': 'a, b'},
        {'names': 'b, a'},
        {'names': 'a, b', 'novel': 'b'},
        {'names': 'a, b', 'synonyms': {'a': ['c']}},
        {'names': 'a, b', 'descriptions': {'a': 'c'}},
        {'names': 'a, b', 'labels': ['x', 'y']},
    ]
    assert len({Vocabulary.parse(spec).content_hash for spec in specs}) == len(specs)
    assert Vocabulary.parse('a, b').content_hash == Vocabulary(['a', 'b']).content_hash


def plain(name: str) -> str:
    return ''.join(letter for letter in name.lower() if letter.isalnum())


@pytest.mark.parametrize(
    ('name', 'dataset', 'different'),
    [
        ('coco', CocoDataset, 0),
        ('voc', VOCDataset, 0),
        ('lvis', LVISV1Dataset, 1),  # the host corrects 'speaker_(stero_equipment)' of the annotation files
        ('objects365', Objects365V2Dataset, 14),
        ('ade150', ADE20KDataset, 0),
        ('context59', PascalContextDataset59, 0),
        ('cocostuff171', COCOStuffDataset, 0),
        ('cityscapes', CityscapesDataset, 0),
    ],
)
def test_built_in_sets_follow_the_hosts(name: str, dataset: Any, different: int) -> None:
    ours, theirs = Vocabulary.parse(name).names, dataset.METAINFO['classes']
    assert len(ours) == len(theirs)
    assert sum(plain(a) != plain(b) for a, b in zip(ours, theirs)) == different


def test_splits_of_coco_and_lvis() -> None:
    words, coco = Vocabulary.parse('coco_ov'), Vocabulary.parse('coco')
    assert (len(words), len(words.base_names), len(words.novel_names)) == (65, 48, 17)
    positions = [coco.index(name) for name in words]
    assert positions == sorted(positions)
    assert words == Vocabulary.parse('coco48_17') == Vocabulary.parse('coco65')
    assert {'airplane', 'scissors', 'umbrella'} <= set(words.novel_names)
    assert 'traffic light' not in words.names
    slots = Vocabulary.parse('coco_ov80')
    assert slots.names == coco.names
    assert slots.base_names == words.base_names
    assert set(words.novel_names) < set(slots.novel_names)
    lvis = Vocabulary.parse('lvis')
    assert (len(lvis), len(lvis.base_names), len(lvis.novel_names)) == (1203, 866, 337)
    assert lvis.names[0] == 'aerosol_can'
    assert lvis.names[-1] == 'zucchini'
    more = Vocabulary.parse('lvis_synonyms')
    assert more.names == lvis.names
    assert more.is_novel == lvis.is_novel
    assert sum(map(len, more.synonyms)) == 1826  # the files list 1,825 and leave out 'bull' itself


def test_every_built_in_set_parses() -> None:
    for name in builtin_vocabularies():
        words = Vocabulary.parse(name)
        assert Vocabulary.parse(words.to_dict()) == words


def test_reading_words_needs_no_torch() -> None:
    code = (
        'import sys; from ovd.text.vocabulary import Vocabulary; from ovd.text.templates import expand; '
        "Vocabulary.parse('lvis'); expand('cat', 'vild63'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
