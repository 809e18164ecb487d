"""Grounding data: ODVG files, their errors, sentences of class names for training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.utils import register_all_modules

from ovd.datasets.grounding.dataset import GroundingDataset
from ovd.datasets.grounding.transforms import PackNegativeCaptions, SampleClassNames
from ovd.registry import DATASETS
from tests.helpers import shared_path, write_image
from tests.toys.bert import write_bert

pytest.importorskip('transformers')

CAPTION = 'a red star above a big ring'
LINE = {
    'filename': 'a.png',
    'height': 64,
    'width': 96,
    'grounding': {
        'caption': CAPTION,
        'regions': [
            {'phrase': 'a red star', 'tokens_positive': [[0, 10]], 'bbox': [8, 8, 40, 40]},
            {
                'phrase': 'a big ring',
                'tokens_positive': [[17, 27]],
                'bbox': [[50, 10, 90, 60], [0, 50, 20, 64]],
            },
        ],
    },
}


def write_lines(folder: Path, lines: list[Any]) -> Path:
    write_image(folder / 'a.png', 64, 96)
    path = folder / 'lines.jsonl'
    path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines) + '\n')
    return path


def changed(**region: Any) -> dict[str, Any]:
    """The line with another first region."""
    line = json.loads(json.dumps(LINE))
    line['grounding']['regions'][0] |= region
    return line  # type: ignore[no-any-return]


def read(folder: Path, lines: list[Any], **options: Any) -> GroundingDataset:
    return GroundingDataset(
        ann_file=str(write_lines(folder, lines)), data_prefix={'img': str(folder)}, **options
    )


def test_captions_with_phrases(tmp_path: Path) -> None:
    dataset = read(tmp_path, [LINE, '', LINE])
    assert len(dataset) == 2
    info = dataset.get_data_info(1)
    assert info['text'] == CAPTION
    assert info['tokens_positive'] == {0: [[0, 10]], 1: [[17, 27]]}
    assert [instance['bbox_label'] for instance in info['instances']] == [0, 1, 1]
    assert info['img_id'] == 1
    assert 'ann_file' not in dataset.metainfo, 'sets that are joined would differ in it'
    tested = read(tmp_path, [LINE], test_mode=True)
    assert tested.metainfo['ann_file'] == str(tmp_path / 'lines.jsonl')


def test_a_pipeline_makes_training_samples(tmp_path: Path) -> None:
    register_all_modules(init_default_scope=True)
    dataset = DATASETS.build(
        {
            'type': 'ovd.GroundingDataset',
            'ann_file': str(write_lines(tmp_path, [LINE])),
            'data_prefix': {'img': str(tmp_path)},
            'pipeline': [
                {'type': 'ovd.LoadImage'},
                {'type': 'mmdet.LoadAnnotations', 'with_bbox': True},
                {'type': 'mmdet.PackDetInputs', 'meta_keys': ('img_shape', 'text', 'tokens_positive')},
            ],
        }
    )
    sample = dataset[0]['data_samples']
    assert sample.text == CAPTION
    assert sample.tokens_positive == {0: [[0, 10]], 1: [[17, 27]]}
    assert sample.gt_instances.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"filename": ', 'line 2 is not JSON'),
        ('[1]', r'line 2 is \[1\], expected an object'),
        ({'filename': 'a.png', 'height': 1}, "line 2 has no 'width'"),
        ({'filename': 'a.png', 'height': 64, 'width': 96}, "line 2 has no 'grounding'; .* label_map"),
        (changed(tokens_positive=-1), 'line 2: .* -1'),
        (changed(tokens_positive=[[0, 99]]), r'line 2: .*\[0, 99\)'),
        (changed(tokens_positive=[[0, 9]]), "line 2: .*'a red sta'"),
        (changed(bbox=[100, 8, 120, 40]), r'line 2: box \[100.0, .* not in the image of 96 x 64'),
        (LINE | {'height': '64'}, "line 2: 'height' is '64'"),
        (LINE | {'filename': None}, "line 2: 'filename' is None"),
        (LINE | {'grounding': {}}, "line 2: the caption of 'grounding' is None, expected a text"),
        (LINE | {'grounding': []}, "line 2: the caption of 'grounding' is None, expected a text"),
        (changed(bbox=None), r"line 2: region 0: expected 'bbox', \[x1, .* got None"),
        (changed(bbox=[1, 2, 3]), r'line 2: region 0: expected .* got \[1, 2, 3\]'),
        (changed(bbox=[[1, 2, 3, 4], [5]]), 'line 2: region 0: expected'),
        (changed(bbox=[40, 8, 8, 40]), r'line 2: box \[40.0, .*\] \[x1, y1, x2, y2\] has no area'),
        (changed(bbox=[8, 8, 40, float('inf')]), 'line 2: region 0: expected .*inf'),
        (LINE | {'grounding': {'caption': 'a', 'regions': 3}}, 'line 2: expected a list of regions, got 3'),
        (
            LINE | {'grounding': {'caption': 'a', 'tokens_ignored': 3}},
            'line 2: expected a list of tokens_ignored, got 3',
        ),
        (changed(score='high'), "line 2: expected a score for each box, got 'high'"),
        (changed(phrase='a blue star'), "line 2: phrase 0 is 'a blue star', its characters are 'a red star'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [LINE, line])


def test_bad_regions_can_be_left_out(tmp_path: Path) -> None:
    lines = [
        changed(tokens_positive=[[0, 9]]),
        changed(bbox=[[100, 8, 120, 40]]),
        changed(bbox=[1, 1, 1.5, 9]),
    ]
    dataset = read(tmp_path, lines, bad_regions='drop')
    for info in dataset:
        assert info['tokens_positive'] == {1: [[17, 27]]}


def test_a_phrase_may_be_spelled_otherwise_but_not_be_another(tmp_path: Path) -> None:
    lines = [changed(phrase=phrase) for phrase in ('A red  STAR', ['star', 'a red'], 'a-red_star', None)]
    for info in read(tmp_path, lines):
        assert info['tokens_positive'] == {0: [[0, 10]], 1: [[17, 27]]}
    (info,) = read(tmp_path, [changed(phrase='red star above')], bad_regions='drop')
    assert info['tokens_positive'] == {1: [[17, 27]]}


def test_a_file_without_samples_is_named(tmp_path: Path) -> None:
    """A sampler of endless batches would wait for the first sample for ever."""
    with pytest.raises(ValueError, match=r'lines\.jsonl has no samples'):
        read(tmp_path, [''])


def test_other_encodings_are_named(tmp_path: Path) -> None:
    assert len(read(tmp_path, ['\ufeff' + json.dumps(LINE)])) == 1, 'a mark of the byte order'
    line = json.dumps(LINE, ensure_ascii=False).replace('star', 'étoile')
    (tmp_path / 'latin.jsonl').write_text(line, encoding='latin-1')
    with pytest.raises(ValueError, match=r'latin\.jsonl is not UTF-8'):
        GroundingDataset(ann_file=str(tmp_path / 'latin.jsonl'))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'lines.jsonl: 1 images are not on disk, .*b\.png'):
        read(tmp_path, [LINE | {'filename': 'b.png'}])
    assert len(read(tmp_path, [LINE | {'filename': 'b.png'}], missing_images='unchecked')) == 1
    with pytest.raises(FileNotFoundError, match=r'annotation file .*none\.jsonl does not exist'):
        GroundingDataset(ann_file=str(tmp_path / 'none.jsonl'))


def detection(label: int) -> dict[str, Any]:
    instance = {'bbox': [8, 8, 40, 40], 'label': label, 'category': '?'}
    return {'filename': 'a.png', 'height': 64, 'width': 96, 'detection': {'instances': [instance]}}


def test_detection_lines_use_the_labels_of_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / 'map.json'
    path.write_text(json.dumps({'0': 'ring', '1': 'dog'}))
    bare = {'filename': 'a.png', 'height': 64, 'width': 96}
    dataset = read(tmp_path, [detection(1), bare], label_map=path, vocabulary=['cat', 'dog', 'ring'])
    assert dataset.get_data_info(0)['instances'][0]['bbox_label'] == 1
    assert dataset.get_data_info(1)['instances'] == []
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'ring')
    assert read(tmp_path, [detection(1)], label_map=path).metainfo['classes'] == ('ring', 'dog')
    with pytest.raises(ValueError, match='line 1: label 7 is not in'):
        read(tmp_path, [detection(7)], label_map=path)
    with pytest.raises(ValueError, match='line 1: expected a list of instances, got 3'):
        read(tmp_path, [bare | {'detection': {'instances': 3}}], label_map=path)
    with pytest.raises(ValueError, match="the vocabulary has no class 'ring'"):
        read(tmp_path, [detection(1)], label_map=path, vocabulary=['cat', 'dog'])
    with pytest.raises(ValueError, match="line 1 has 'grounding', but the data set is detection"):
        read(tmp_path, [LINE], label_map=path)
    path.write_text(json.dumps({'1': 'ring'}))
    with pytest.raises(ValueError, match='without gaps'):
        read(tmp_path, [detection(1)], label_map=path)
    path.write_text('{"0": ')
    with pytest.raises(ValueError, match=r'\.json is not JSON: '):
        read(tmp_path, [detection(1)], label_map=path)
    with pytest.raises(FileNotFoundError, match=r'label map .*none\.json does not exist'):
        read(tmp_path, [detection(1)], label_map=tmp_path / 'none.json')
    split = {'names': ['ring', 'dog'], 'novel': ['dog']}
    path.write_text(json.dumps({'0': 'ring', '1': 'dog'}))
    kept = read(tmp_path, [detection(0), detection(1)], label_map=path, vocabulary=split, novel_boxes='drop')
    assert [len(info['instances']) for info in kept] == [1, 0]


def test_phrases_of_novel_classes_lose_their_boxes(tmp_path: Path) -> None:
    split = {'names': ['star', 'ring'], 'novel': ['ring']}
    (info,) = read(tmp_path, [LINE], vocabulary=split, novel_boxes='drop')
    assert info['tokens_positive'] == {0: [[0, 10]]}
    assert info['tokens_ignored'] == [[17, 27]]
    assert [instance['bbox_label'] for instance in info['instances']] == [0]
    assert 'tokens_ignored' not in read(tmp_path, [LINE], vocabulary=split).get_data_info(0)
    with pytest.raises(ValueError, match="novel_boxes='drop' needs a vocabulary with novel"):
        read(tmp_path, [LINE], vocabulary=['star'], novel_boxes='drop')


def scored(score: Any, **grounding: Any) -> dict[str, Any]:
    """The line with scores of its rings."""
    line = json.loads(json.dumps(LINE))
    line['grounding']['regions'][1] |= {'score': score}
    line['grounding'] |= grounding
    return line  # type: ignore[no-any-return]


@pytest.mark.parametrize('score', [[0.9, 0.4], [[0.9, 0.4]]])
def test_boxes_of_low_scores_are_left_out(tmp_path: Path, score: Any) -> None:
    kept = [len(read(tmp_path, [scored(score)], min_score=least)[0]['instances']) for least in (0.0, 0.5)]
    assert kept == [3, 2]
    (info,) = read(tmp_path, [scored(score)], min_score=0.95)
    assert info['tokens_positive'] == {0: [[0, 10]]}, 'a true box has no score'
    assert info['tokens_ignored'] == [[17, 27]], 'the ring may still be there'


def test_scores_go_with_boxes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='line 1: 1 scores came with 2 boxes'):
        read(tmp_path, [scored(0.4)])
    with pytest.raises(ValueError, match='min_score is 50, expected 0 to 1'):
        read(tmp_path, [LINE], min_score=50)


def test_only_a_model_may_box_novel_phrases(tmp_path: Path) -> None:
    options = {'vocabulary': {'names': ['star', 'ring'], 'novel': ['ring']}, 'novel_boxes': 'pseudo'}
    true, pseudo = read(tmp_path, [LINE, scored([0.9, 0.4])], **options)
    assert (len(true['instances']), true['tokens_ignored']) == (1, [[17, 27]])
    assert len(pseudo['instances']) == 3
    assert 'tokens_ignored' not in pseudo


def test_phrases_that_a_line_ignores(tmp_path: Path) -> None:
    (info,) = read(tmp_path, [scored([0.9, 0.4], tokens_ignored=[[11, 16]])])
    assert info['tokens_ignored'] == [[11, 16]]
    with pytest.raises(ValueError, match="'abov'"):
        read(tmp_path, [scored([0.9, 0.4], tokens_ignored=[[11, 15]])])


def test_detection_of_a_model_is_filtered_too(tmp_path: Path) -> None:
    path = tmp_path / 'map.json'
    path.write_text(json.dumps({'0': 'ring', '1': 'dog'}))
    line = detection(1)
    line['detection']['instances'][0]['score'] = 0.6
    split = {'names': ['ring', 'dog'], 'novel': ['dog']}
    for lines, least, expected in (([line], 0.5, 1), ([line], 0.7, 0), ([detection(1)], 0.0, 0)):
        (info,) = read(
            tmp_path, lines, label_map=path, vocabulary=split, novel_boxes='pseudo', min_score=least
        )
        assert len(info['instances']) == expected


def test_the_stored_lines_are_read_as_by_the_reference(tmp_path: Path) -> None:
    content = json.loads(shared_path('goldens/glip/odvg_cases.json').read_text())
    (tmp_path / 'map.json').write_text(json.dumps(content['label_map']))
    for mode, options in (('od', {'label_map': tmp_path / 'map.json'}), ('vg', {})):
        path = tmp_path / f'{mode}.jsonl'
        path.write_text('\n'.join(json.dumps(line) for line in content[f'{mode}_input']))
        dataset = GroundingDataset(
            ann_file=str(path),
            data_prefix={'img': 'img'},
            bad_regions='drop',
            missing_images='unchecked',
            **options,
        )
        assert len(dataset) == len(content[f'{mode}_parsed'])
        for info, expected in zip(dataset, content[f'{mode}_parsed']):
            assert (info['img_path'], info['height']) == (expected['img_path'], expected['height'])
            assert info['instances'] == expected['instances']
            if mode == 'vg':
                phrases = expected['phrases']
                assert info['text'] == expected['text']
                assert info['tokens_positive'] == {
                    int(label): phrase['tokens_positive'] for label, phrase in phrases.items()
                }


def boxes(labels: list[int]) -> dict[str, Any]:
    return {
        'gt_bboxes': np.arange(4.0 * len(labels)).reshape(-1, 4),
        'gt_bboxes_labels': np.array(labels, dtype=np.int64),
        'gt_ignore_flags': np.zeros(len(labels), dtype=bool),
    }


def test_sentences_of_names(tmp_path: Path) -> None:
    names = [f'class {number}' for number in range(120)]
    transform = SampleClassNames(names, write_bert(tmp_path))
    np.random.seed(0)  # noqa: NPY002
    counts, first = [], set()
    for _ in range(60):
        results = transform(boxes([3, 3, 50, 119, 7]))
        spans = results['tokens_positive']
        found = [results['text'][s:e] for ((s, e),) in spans.values()]
        assert [found[label] for label in results['gt_bboxes_labels']] == [
            names[n] for n in (3, 3, 50, 119, 7)
        ]
        assert len(set(found)) == len(found)
        assert list(spans) == list(range(len(found)))
        assert transform.count_tokens([results['text']])[0] <= 254
        counts.append(len(found))
        first.add(found[0])
    # The budget of tokens ends the sentence where the 85 names do not fit.
    assert min(counts) < 30
    assert max(counts) > 50
    assert len(first) > 20


def test_fixed_order_and_novel_names(tmp_path: Path) -> None:
    vocabulary = {'names': ['dog', 'cat', 'bird', 'ring'], 'novel': ['cat']}
    transform = SampleClassNames(vocabulary, write_bert(tmp_path), full_prob=1.0, shuffle=False)
    assert transform(boxes([3]))['text'] == 'dog. bird. ring'
    assert transform(boxes([]))['tokens_positive'] == {0: [[0, 3]], 1: [[5, 9]], 2: [[11, 15]]}
    ended = SampleClassNames(vocabulary, tmp_path, full_prob=1.0, shuffle=False, final='. ')
    assert ended(boxes([0]))['text'] == 'dog. bird. ring. '
    names, final = ['dog', 'cat', 'bird', 'ring'], ' and the big cup.'
    long = SampleClassNames(names, tmp_path, full_prob=1.0, max_tokens=10, final=final)
    assert long.count_tokens([long(boxes([0]))['text']])[0] <= 8


def test_boxes_of_names_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    names = ['dog', 'big red dog', 'cat', 'bird']
    transform = SampleClassNames(names, write_bert(tmp_path), max_tokens=8)
    np.random.seed(1)  # noqa: NPY002
    kept = set()
    for _ in range(20):
        results = transform(boxes([0, 1, 2, 3]))
        assert (
            len(results['gt_bboxes']) == len(results['gt_bboxes_labels']) == len(results['gt_ignore_flags'])
        )
        assert transform.count_tokens([results['text']])[0] <= 6
        kept.add(len(results['gt_bboxes']))
    assert kept == {2, 3}
    with pytest.raises(ValueError, match='big red dog'):
        SampleClassNames(names, tmp_path, max_tokens=5)


def test_phrases_with_the_words_of_other_pictures(tmp_path: Path) -> None:
    write_image(tmp_path / 'b.png', 64, 96)
    other = json.loads(json.dumps(LINE).replace('red star', 'big comb'))
    single = {**LINE, 'grounding': {**LINE['grounding'], 'regions': LINE['grounding']['regions'][:1]}}
    lines = [LINE, LINE, {**other, 'filename': 'b.png'}, single]
    plain, shuffled = read(tmp_path, lines), read(tmp_path, lines, shuffle_captions=True)
    texts = [info['text'] for info in (shuffled.get_data_info(index) for index in range(4))]
    assert texts == ['a big comb above a big ring'] * 2 + [CAPTION] * 2
    for index in range(4):
        mine, before = shuffled.get_data_info(index), plain.get_data_info(index)
        assert mine['instances'] == before['instances']
        assert mine['img_path'] == before['img_path']
        assert mine['tokens_positive'].keys() == before['tokens_positive'].keys()
        words = [mine['text'][s:e] for spans in mine['tokens_positive'].values() for s, e in spans]
        assert words[0] == ('a big comb' if index < 2 else 'a red star')


def write_captions(folder: Path) -> Path:
    path = folder / 'captions.txt'
    path.write_text('a dog\n\na cat and a bird.\nthe red star\na cup\na dog\n')
    return path


def own_caption() -> dict[str, Any]:
    return {
        'text': 'a red star and a big ring',
        'tokens_positive': {0: [[2, 10]]},
        'tokens_ignored': [[15, 25]],
    }


def test_a_caption_among_others(tmp_path: Path) -> None:
    options = {'plain_prob': 0.0, 'full_prob': 1.0, 'max_negatives': 19}
    transform = PackNegativeCaptions(write_captions(tmp_path), write_bert(tmp_path / 'bert'), **options)
    assert transform.captions == ['a dog', 'a cat and a bird.', 'the red star', 'a cup']
    np.random.seed(0)  # noqa: NPY002
    places = set()
    for _ in range(30):
        results = transform(own_caption())
        text = results['text']
        assert [text[s:e] for s, e in results['tokens_positive'][0]] == ['red star']
        assert [text[s:e] for s, e in results['tokens_ignored']] == ['a big ring']
        assert 'the red star' not in text
        assert transform.count_tokens([text])[0] <= 254
        places.add(results['tokens_positive'][0][0][0])
        assert text.count('.') > 10
    assert len(places) > 10
    alone = PackNegativeCaptions(
        tmp_path / 'captions.txt', tmp_path / 'bert', plain_prob=0.0, max_negatives=0
    )
    padded = alone({'text': 'a dog.   ', 'tokens_positive': {0: [[2, 9]]}, 'tokens_ignored': [[0, 8]]})
    assert padded['tokens_positive'] == {0: [[2, 6]]}
    assert padded['tokens_ignored'] == [[0, 6]]


def test_captions_that_name_classes_of_the_image_are_not_packed(tmp_path: Path) -> None:
    captions = tmp_path / 'captions.txt'
    captions.write_text('a blue star\na cat\nrings and stars\na starfish\n')
    np.random.seed(0)  # noqa: NPY002
    packed = {}
    for vocabulary in (None, 'star, ring, cat'):
        transform = PackNegativeCaptions(
            captions, write_bert(tmp_path / 'bert'), plain_prob=0.0, full_prob=1.0, vocabulary=vocabulary
        )
        packed[vocabulary] = set(transform(own_caption())['text'].split('. '))
    known = {'a cat', 'a starfish', 'a red star and a big ring'}
    assert {text.strip('. ') for text in packed['star, ring, cat']} == known
    assert {text.strip('. ') for text in packed[None]} == known | {'a blue star', 'rings and stars'}


def test_how_often_captions_are_packed(tmp_path: Path) -> None:
    captions, folder = write_captions(tmp_path), write_bert(tmp_path / 'bert')
    np.random.seed(0)  # noqa: NPY002
    transform = PackNegativeCaptions(captions, folder)
    alone = sum(transform(own_caption())['text'] == own_caption()['text'] for _ in range(200))
    assert 60 < alone < 100
    short = PackNegativeCaptions(captions, folder, plain_prob=0.0, full_prob=1.0, max_tokens=14)
    for _ in range(20):
        assert short.count_tokens([short(own_caption())['text']])[0] <= 12
    lines = PackNegativeCaptions(write_lines(tmp_path, [LINE]), folder, plain_prob=0.0)
    assert lines.captions == [CAPTION]
    with pytest.raises(FileNotFoundError, match=r'none\.txt'):
        PackNegativeCaptions(tmp_path / 'none.txt', folder)


@pytest.mark.parametrize(
    ('name', 'lines', 'message'),
    [
        ('lines.jsonl', [json.dumps(LINE), '{"gro'], r'lines\.jsonl, line 2'),
        ('lines.jsonl', [json.dumps(detection(0))], r'lines\.jsonl, line 1'),
        ('none.txt', ['', ' '], r'none\.txt'),
    ],
)
def test_files_without_captions_are_named(tmp_path: Path, name: str, lines: list[str], message: str) -> None:
    (tmp_path / name).write_text('\n'.join(lines))
    transform = PackNegativeCaptions(
        tmp_path / name, write_bert(tmp_path / 'bert'), plain_prob=0.0, full_prob=1.0
    )
    with pytest.raises(ValueError, match=message):
        transform(own_caption())
