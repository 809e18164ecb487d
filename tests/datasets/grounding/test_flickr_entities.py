"""Flickr30k Entities as published: marked sentences, boxes in XML, a sample per sentence."""

from pathlib import Path
from typing import Any

import pytest

from ovd.datasets.grounding.flickr_entities import FlickrEntitiesDataset, MarkedPhrase, parse_sentence
from ovd.text.phrases import caption_prompt
from tests.helpers import write_image

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#1/people their hands] .
[/EN#3/scene/other A yard] , and [/EN#0/notvisual nothing] else .
"""
XML = """\
<annotation>
  <filename>77.jpg</filename>
  <size><width>96</width><height>64</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object>
  <object><name>1</name><name>2</name>
    <bndbox><xmin>50</xmin><ymin>5</ymin><xmax>96</xmax><ymax>64</ymax></bndbox></object>
  <object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>
"""


def write_entities(folder: Path, sentences: str = SENTENCES, xml: str = XML) -> Path:
    for name in ('Sentences', 'Annotations'):
        (folder / name).mkdir(exist_ok=True)
    (folder / 'Sentences' / '77.txt').write_text(sentences)
    (folder / 'Annotations' / '77.xml').write_text(xml)
    (folder / 'train.txt').write_text('77\n')
    write_image(folder / 'images' / '77.jpg', 64, 96)
    return folder / 'train.txt'


def read(folder: Path, **options: Any) -> FlickrEntitiesDataset:
    return FlickrEntitiesDataset(
        ann_file=str(folder / 'train.txt'), data_prefix={'img': str(folder / 'images')}, **options
    )


def test_a_marked_sentence() -> None:
    text, phrases = parse_sentence('[/EN#1/people A man] in [/EN#22/clothing/other a hat] .', 'here')
    assert text == 'A man in a hat .'
    assert phrases == [MarkedPhrase(0, 5, '1', ('people',)), MarkedPhrase(9, 14, '22', ('clothing', 'other'))]
    assert parse_sentence('no marks [at all]', 'here') == ('no marks [at all]', [])


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('[/EN#1/people ] runs', r"line 3: the mark '\[/EN#1/people \]' has no words"),
        ('[/EN#1/people A man runs', r"line 3: '\[/EN#1/people A man runs' is no complete mark"),
    ],
)
def test_broken_marks_are_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sentence(line, 'line 3')


def test_a_sample_per_sentence(tmp_path: Path) -> None:
    write_entities(tmp_path)
    first, second = read(tmp_path)
    assert first['text'] == 'Two young guys with shaggy hair look at their hands .'
    spans = {label: first['text'][start:end] for label, ((start, end),) in first['tokens_positive'].items()}
    assert spans == {0: 'Two young guys', 1: 'shaggy hair', 2: 'their hands'}
    found = [(instance['bbox_label'], instance['bbox']) for instance in first['instances']]
    # Pixels are counted from 1 and the last one is inside.
    left, right = [0.0, 0.0, 40.0, 60.0], [49.0, 4.0, 96.0, 64.0]
    assert found == [(0, left), (0, right), (1, right), (2, left), (2, right)]
    assert first['phrase_types'] == {0: ['people'], 1: ['bodyparts'], 2: ['people']}
    assert (first['height'], first['width'], first['img_id'], second['img_id']) == (64, 96, 0, 1)
    assert second['tokens_positive'] == {}
    assert second['instances'] == []
    caption_prompt(first['text'], first['tokens_positive'])


def test_novel_phrases_lose_their_boxes(tmp_path: Path) -> None:
    write_entities(tmp_path)
    split = {'names': ['guy', 'hair'], 'novel': ['hair']}
    first, _ = read(tmp_path, vocabulary=split, novel_boxes='drop')
    assert set(first['tokens_positive']) == {0, 2}
    assert first['tokens_ignored'] == [[20, 31]]


def test_files_elsewhere(tmp_path: Path) -> None:
    write_entities(tmp_path)
    split = tmp_path / 'splits' / 'mine.txt'
    split.parent.mkdir()
    split.write_text('77\n')
    dataset = FlickrEntitiesDataset(
        ann_file=str(split), entities=tmp_path, data_prefix={'img': str(tmp_path / 'images')}
    )
    assert len(dataset) == 2
    with pytest.raises(FileNotFoundError, match=r'splits/Annotations/77\.xml does not exist'):
        FlickrEntitiesDataset(ann_file=str(split), data_prefix={'img': str(tmp_path / 'images')})
    (tmp_path / 'Sentences' / '77.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'77\.txt does not exist: sentences of image 77'):
        read(tmp_path)


@pytest.mark.parametrize(
    'xml', ['<annotation>', XML.replace('<height>64</height>', ''), XML.replace('40', 'x')]
)
def test_broken_boxes_are_named(tmp_path: Path, xml: str) -> None:
    write_entities(tmp_path, xml=xml)
    with pytest.raises(ValueError, match=r'77\.xml cannot be read'):
        read(tmp_path)
