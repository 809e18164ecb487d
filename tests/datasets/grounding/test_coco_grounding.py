"""COCO instances and captions as grounding data: which words of a caption get which boxes."""

import json
from pathlib import Path
from typing import Any

import pytest

from ovd.datasets.grounding.coco import CaptionMatcher, CocoGroundingDataset
from ovd.text.phrases import caption_prompt
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path, write_coco

NAMES = ['person', 'dog', 'hot dog', 'car_(vehicle)']
WORDS = {'person': ['man', 'woman'], 'dog': ['puppy']}
ONE, TWO = [1.0, 2.0, 11.0, 22.0], [20.0, 20.0, 40.0, 40.0]


def ground(caption: str, labels: list[int], append: bool = True, **options: Any) -> Any:
    """(phrase, boxes) of a caption of an image with one box of each label, and the ignored words."""
    matcher = CaptionMatcher(Vocabulary(NAMES), WORDS)
    found = matcher.ground(caption, {label: [[label, 0, label + 9, 9]] for label in labels}, append)
    text = found['caption']
    for region in found['regions']:
        caption_prompt(text, [region['tokens_positive']])
    regions = [(region['phrase'], int(region['bbox'][0][0])) for region in found['regions']]
    return text, regions, [text[start:end] for start, end in found.get('tokens_ignored', [])]


def test_names_synonyms_and_plurals_get_the_boxes_of_their_class() -> None:
    text, regions, ignored = ground('A man walks two small black puppies', [0, 1])
    assert text == 'A man walks two small black puppies'
    assert regions == [('man', 0), ('small black puppies', 1)]
    assert ignored == []


def test_a_class_by_one_word_twice_is_one_phrase() -> None:
    _, regions, ignored = ground('a dog and a black dog', [1])
    assert regions == [('dog / black dog', 1)]
    assert ignored == []


def test_a_class_by_different_words_is_ambiguous() -> None:
    text, regions, ignored = ground('A man and a woman in a car', [0, 3])
    assert text == 'A man and a woman in a car. person'
    assert regions == [('car', 3), ('person', 0)]
    assert ignored == ['man', 'woman']
    assert ground('A man and a woman in a car', [0, 3], append=False)[:2] == (
        'A man and a woman in a car',
        [('car', 3)],
    )


def test_what_is_said_but_has_no_boxes_is_ignored() -> None:
    assert ground('a dog eats a hot dog.', [2]) == ('a dog eats a hot dog.', [('hot dog', 2)], ['dog'])


def test_what_is_not_said_is_appended() -> None:
    assert ground('Nice.', [1, 3])[:2] == ('Nice. dog. car', [('dog', 1), ('car', 3)])
    assert ground('Nice', [1])[0] == 'Nice. dog'


def test_words_of_no_class_are_refused() -> None:
    with pytest.raises(ValueError, match="words are given for 'cat', which is no class"):
        CaptionMatcher(Vocabulary(NAMES), {'cat': ['kitten']})


def write_task(folder: Path) -> dict[str, Any]:
    instances = write_coco(
        folder, ['person', 'dog'], [[(0, [1, 2, 10, 20]), (1, [20, 20, 20, 20])], [(1, [3, 3, 9, 9])]]
    )
    captions = [(1, 'A man and\n his dog '), (1, 'A puppy'), (2, 'a dog')]
    content = json.loads(instances.read_text())
    content['annotations'] = [
        {'id': number, 'image_id': image_id, 'caption': caption}
        for number, (image_id, caption) in enumerate(captions)
    ]
    (folder / 'captions.json').write_text(json.dumps(content))
    return {
        'data_root': str(folder),
        'ann_file': 'instances.json',
        'captions': 'captions.json',
        'data_prefix': {'img': 'images'},
        'vocabulary': {'names': ['person', 'dog'], 'novel': ['dog']},
        'words': WORDS,
    }


def test_a_sample_per_caption(tmp_path: Path) -> None:
    first, second, third = CocoGroundingDataset(**write_task(tmp_path))
    assert first['text'] == 'A man and his dog'
    assert first['tokens_positive'] == {0: [[2, 5]], 1: [[14, 17]]}
    assert [instance['bbox'] for instance in first['instances']] == [ONE, TWO]
    assert second['text'] == 'A puppy. person'
    assert third['img_path'].endswith('000001.png')


def test_no_word_of_a_novel_class_gets_its_boxes(tmp_path: Path) -> None:
    """Not even a word that only ``words`` knows, nor an appended name."""
    options = write_task(tmp_path) | {'novel_boxes': 'drop'}
    first, second, third = CocoGroundingDataset(**options)
    assert [instance['bbox'] for instance in first['instances']] == [ONE]
    assert first['tokens_ignored'] == [[14, 17]]
    assert second['text'] == 'A puppy. person'
    assert second['tokens_ignored'] == [[2, 7]]
    assert third['instances'] == []


def test_bad_files_are_named(tmp_path: Path) -> None:
    options = write_task(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'caption file .*none\.json does not exist'):
        CocoGroundingDataset(**options | {'captions': 'none.json'})
    with pytest.raises(ValueError, match="unnamed must be one of 'append', 'drop', got 'x'"):
        CocoGroundingDataset(**options, unnamed='x')
    content = json.loads((tmp_path / 'instances.json').read_text())
    content['images'] = content['images'][:1]
    content['annotations'] = content['annotations'][:2]
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'annotation 2 of image 2: .*instances\.json has no such image'):
        CocoGroundingDataset(**options)


def test_real_captions_name_what_is_boxed() -> None:
    root = shared_path('data/coco_mini')
    dataset = CocoGroundingDataset(
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        captions='annotations/captions_train2017.json',
        data_prefix={'img': 'train2017'},
        vocabulary='coco',
        words={'person': ['man', 'woman', 'boy', 'girl', 'child']},
        unnamed='drop',
    )
    assert len(dataset) == 400
    named = sum(bool(info['instances']) for info in dataset)
    assert named > 200
