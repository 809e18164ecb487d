"""Caption files in every layout, bad ones included; noun prompts; augmentation; the packed sample."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmseg.models.data_preprocessor import SegDataPreProcessor

from ovd.datasets.captions.dataset import CaptionDataset
from ovd.datasets.captions.transforms import CaptionPrompts, PackCaptions, TimmAugment, noun_id
from ovd.randomness import seed_generators
from ovd.registry import DATASETS, TRANSFORMS
from tests.helpers import ROOT, shared_path
from tests.toys.captions import write_coco_captions, write_pictures, write_table

NOUNS = {'backend': 'vocabulary', 'vocabulary': ['dog', 'cat', 'tree', 'red star']}


def captions_of(dataset: Any) -> list[tuple[str, list[str]]]:
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [(Path(info['img_path']).name, info['captions']) for info in infos]


# --- files --------------------------------------------------------------------------------------------------


def write_csv(folder: Path, captions: list[list[Any]]) -> dict[str, Any]:
    names = write_pictures(folder / 'images', len(captions))
    rows = [['caption', 'image'], *([text, name] for name, texts in zip(names, captions) for text in texts)]
    return {'ann_file': str(write_table(folder / 'captions.csv', rows))}


def write_tsv(folder: Path, captions: list[list[Any]]) -> dict[str, Any]:
    names = write_pictures(folder / 'images', len(captions))
    rows = [['x', name, text] for name, texts in zip(names, captions) for text in texts]
    path = write_table(folder / 'captions.tsv', rows)
    return {'ann_file': str(path), 'image_field': 1, 'caption_field': 2}


def write_json_lines(folder: Path, captions: list[list[Any]]) -> dict[str, Any]:
    names = write_pictures(folder / 'images', len(captions))
    path = folder / 'captions.jsonl'
    path.write_text(
        '\n\n'.join(json.dumps({'file': name, 'texts': texts}) for name, texts in zip(names, captions))
    )
    return {'ann_file': str(path), 'image_field': 'file', 'caption_field': 'texts'}


def write_folder(folder: Path, captions: list[list[Any]]) -> dict[str, Any]:
    for name, texts in zip(write_pictures(folder / 'images', len(captions)), captions):
        (folder / 'images' / name).with_suffix('.txt').write_text('\n'.join(texts))
    return {}


def write_coco(folder: Path, captions: list[list[Any]]) -> dict[str, Any]:
    return {'ann_file': str(write_coco_captions(folder, captions))}


LAYOUTS = {
    'coco': write_coco,
    'csv': write_csv,
    'tsv': write_tsv,
    'jsonl': write_json_lines,
    'folder': write_folder,
}
Writer = Callable[[Path, list[list[Any]]], dict[str, Any]]


def build(folder: Path, options: dict[str, Any], **kwargs: Any) -> CaptionDataset:
    prefix = {'img_path': str(folder / 'images')}
    return CaptionDataset(**options, data_prefix=prefix, serialize_data=False, **kwargs)


@pytest.mark.parametrize('write', LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_pairs(tmp_path: Path, write: Writer) -> None:
    captions = [['a dog, "barking"', 'a brown dog'], ['zwei Bäume']]
    options = write(tmp_path, captions)
    dataset = build(tmp_path, options)
    assert captions_of(dataset) == [('000000.png', captions[0]), ('000001.png', captions[1])]
    assert dataset.metainfo['pairs'] == 3
    every = build(tmp_path, options, captions='all')
    assert [texts for _, texts in captions_of(every)] == [[text] for texts in captions for text in texts]
    assert all(Path(every.get_data_info(index)['img_path']).is_file() for index in range(3))


@pytest.mark.parametrize(
    ('layout', 'place'),
    [('coco', 'annotation 2 of image 11'), ('csv', 'line 3'), ('tsv', 'line 2'), ('jsonl', 'line 3')],
)
def test_missing_images_are_refused_or_dropped(tmp_path: Path, layout: str, place: str) -> None:
    options = LAYOUTS[layout](tmp_path, [['a dog'], ['a cat'], ['a tree']])
    for name in ('000001.png', '000002.png'):
        (tmp_path / 'images' / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf'{place}.*000001.png.*2.*3') as e:
        build(tmp_path, options)
    assert '\n' not in str(e.value)
    assert captions_of(build(tmp_path, options, missing_images='drop')) == [('000000.png', ['a dog'])]
    assert len(build(tmp_path, options, missing_images='unchecked')) == 3


@pytest.mark.parametrize('write', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize('blank', ['', ' \t'])
def test_empty_captions_are_refused_or_dropped(tmp_path: Path, write: Writer, blank: str) -> None:
    options = write(tmp_path, [['a dog'], [blank]])
    with pytest.raises(ValueError, match=r'000001.png.*1 of 2') as error:
        build(tmp_path, options)
    assert '\n' not in str(error.value)
    assert captions_of(build(tmp_path, options, empty_captions='drop')) == [('000000.png', ['a dog'])]
    nothing = tmp_path / 'nothing'
    nothing.mkdir()
    with pytest.raises(ValueError):
        build(nothing, write(nothing, [[blank]]), empty_captions='drop')


@pytest.mark.parametrize('write', [write_json_lines, write_coco])
def test_captions_that_are_no_text_are_refused_or_dropped(tmp_path: Path, write: Writer) -> None:
    options = write(tmp_path, [['a dog', 7], ['a cat', None], []])
    with pytest.raises(ValueError, match=r'000000.png\).*7.*3.*5'):
        build(tmp_path, options)
    dataset = build(tmp_path, options, empty_captions='drop')
    assert [texts for _, texts in captions_of(dataset)] == [['a dog'], ['a cat']]


def test_an_image_without_a_text_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, [['a dog'], ['a cat']])
    (tmp_path / 'images' / '000001.txt').unlink()
    with pytest.raises(ValueError, match=r'000001.png.*1.*2'):
        build(tmp_path, {})
    assert len(build(tmp_path, {}, empty_captions='drop')) == 1


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.json', '{', 'a.json'),
        ('a.json', '[]', "COCO's"),
        ('a.json', '{"images": [{"id": 1}], "annotations": []}', 'file_name'),
        ('a.json', '{"images": [], "annotations": [{"id": 4, "image_id": 9}]}', r"'id': 4"),
        ('a.json', '{"images": [7], "annotations": []}', '7'),
        ('a.json', '{"images": [], "annotations": ["dog"]}', 'unknown'),
        (
            'a.json',
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": []}]}',
            'image_id',
        ),
        ('a.csv', 'image,caption\nx.png,"dog' + 'g' * 140_000, 'field larger than'),
        ('a.csv', 'path,caption\nx.png,dog', "'image'"),
        ('a.csv', '', "'image'"),
        ('a.jsonl', '{"image": "x.png"}\n{', '2'),
        ('a.jsonl', '{"caption": "x"}', r"1.*'image'"),
        ('a.xml', '', 'xml'),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        build(tmp_path, {'ann_file': str(tmp_path / name)})
    assert name in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['a.csv', 'a.jsonl', 'a.json', 'images/a.txt'])
def test_texts_that_are_not_utf8_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').touch()
    content = '{"image": "a.png", "caption": "caf\xe9"}' if 'json' in name else 'image,caption\na.png,caf\xe9'
    (tmp_path / name).write_bytes(content.encode('latin-1'))
    with pytest.raises(ValueError, match='utf-8') as error:
        build(tmp_path, {} if name.startswith('images') else {'ann_file': str(tmp_path / name)})
    assert name in str(error.value)


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no.json'):
        build(tmp_path, {'ann_file': str(tmp_path / 'no.json')})
    (tmp_path / 'images').mkdir()
    with pytest.raises(FileNotFoundError):
        build(tmp_path, {})
    with pytest.raises(ValueError, match=r"'draw'.*'first'.*'all'.*'some'"):
        build(tmp_path, {}, captions='some')


def test_captions_are_drawn_in_training_and_fixed_in_testing(tmp_path: Path) -> None:
    options = write_coco(tmp_path, [['one', 'two', 'three']])

    def drawn(**kwargs: Any) -> list[str]:
        dataset = build(tmp_path, options, **kwargs)
        return [dataset[0]['caption'] for _ in range(30)]

    assert set(drawn()) == {'one', 'two', 'three'}
    assert set(drawn(test_mode=True)) == {'one'}
    seed_generators(1)
    first = drawn()
    seed_generators(1)
    assert drawn() == first


def test_broken_images_are_refused_or_replaced(tmp_path: Path) -> None:
    options = write_coco(tmp_path, [['one'], ['two'], ['three']])
    (tmp_path / 'images' / '000001.png').write_bytes(b'no image')
    pipeline = [{'type': 'ovd.LoadImage'}]
    dataset = build(tmp_path, options, pipeline=pipeline)
    with pytest.raises(ValueError, match=r'000001.png'):
        dataset[1]
    dataset = build(tmp_path, options, pipeline=pipeline, broken_images='replace')
    assert {dataset[1]['caption'] for _ in range(20)} == {'one', 'three'}
    assert dataset._replaced.counts['broken'] >= 20
    dataset = build(tmp_path, options, pipeline=pipeline, broken_images='replace', test_mode=True)
    with pytest.raises(ValueError, match=r'000001.png'):
        dataset[1]


def test_shapes_captions_are_read_as_they_are() -> None:
    root = ROOT / 'data' / 'shapes'
    if not (root / 'annotations' / 'captions_val.json').is_file():
        pytest.skip('OV-Shapes is not drawn here: python tools/make_shapes.py --out data/shapes')
    dataset = CaptionDataset(
        'annotations/captions_val.json', data_root=str(root), data_prefix={'img_path': 'val'}, test_mode=True
    )
    assert all(len(texts) >= 1 for _, texts in captions_of(dataset))


def test_coco_captions_are_read_as_they_are() -> None:
    root = shared_path('data/coco_mini')
    options: dict[str, Any] = {'data_root': str(root), 'data_prefix': {'img_path': 'train2017'}}
    dataset = CaptionDataset('annotations/captions_train2017.json', **options)
    assert len(dataset) == 80
    assert dataset.metainfo['pairs'] == 400
    assert len(CaptionDataset('annotations/captions_train2017.json', captions='all', **options)) == 400


# --- prompts ------------------------------------------------------------------------------------------------


TOKENIZER = open_clip.tokenizer.SimpleTokenizer()


def decode(row: torch.Tensor) -> str:
    ids = [int(i) for i in row if i]
    assert ids[0] == TOKENIZER.sot_token_id
    assert ids[-1] == TOKENIZER.eot_token_id
    return TOKENIZER.decode(ids[1:-1]).strip()


def test_prompts_are_nouns_in_templates_and_the_caption_fills_up() -> None:
    prompts = CaptionPrompts(3, templates=['a photo of a {}.', 'art of the {}.'], nouns=NOUNS)
    seen = set()
    for seed in range(20):
        seed_generators(seed)
        results = prompts.transform({'caption': 'A dog and a Red Star'})
        assert results['token_ids'].shape == (4, 77)
        assert results['token_ids'].dtype == torch.int64
        texts = [decode(row) for row in results['token_ids']]
        assert texts[0] == texts[3] == 'a dog and a red star'
        assert results['noun_mask'].tolist() == [True, True, False]
        ids = {'dog': noun_id('dog'), 'red star': noun_id('red star')}
        nouns = ['dog' if 'dog' in text else 'red star' for text in texts[1:3]]
        assert sorted(nouns) == ['dog', 'red star']
        assert results['noun_ids'].tolist() == [ids[nouns[0]], ids[nouns[1]], -1]
        seen.add(tuple(texts[1:3]))
    assert len(seen) == 8  # two orders, two templates for each of two prompts
    assert {text for pair in seen for text in pair} == {
        *('a photo of a dog .', 'a photo of a red star .', 'art of the dog .', 'art of the red star .')
    }


def test_nouns_are_drawn_without_replacement_and_repeated_ones_stay() -> None:
    prompts = CaptionPrompts(3, templates=['{}'], nouns=NOUNS)
    for seed in range(10):
        seed_generators(seed)
        results = prompts.transform({'caption': 'dog cat tree dog'})
        texts = [decode(row) for row in results['token_ids'][1:]]
        assert all(texts.count(name) <= limit for name, limit in (('dog', 2), ('cat', 1), ('tree', 1)))
    results = prompts.transform({'caption': 'dog dog'})
    assert [decode(row) for row in results['token_ids']] == ['dog dog', 'dog', 'dog', 'dog dog']


def test_nouns_of_all_captions_each_once(tmp_path: Path) -> None:
    options = write_coco(tmp_path, [['Two dogs', 'a dog under a tree', 'a pet']])
    words = {**NOUNS, 'vocabulary': [['dog', 'pet'], ['cat'], ['tree']]}
    prompts = CaptionPrompts(4, templates=['{}'], nouns=words, nouns_of='all_captions', repeats=False)
    results = build(tmp_path, options, pipeline=[prompts], test_mode=True)[0]
    assert results['caption'] == 'Two dogs'
    assert {decode(row) for row in results['token_ids'][1:3]} == {'dogs', 'tree'}
    assert set(results['noun_ids'].tolist()) == {noun_id('dog'), noun_id('tree'), -1}
    each = build(tmp_path, options, pipeline=[prompts], captions='all')
    assert [item['caption'] for item in each] == ['Two dogs', 'a dog under a tree', 'a pet']
    for item in each:
        assert set(item['noun_ids'].tolist()) == {noun_id('dog'), noun_id('tree'), -1}
    every = CaptionPrompts(4, templates=['{}'], nouns=words, nouns_of='all_captions')
    results = every.transform(results)
    assert sorted(decode(row) for row in results['token_ids'][1:]) == ['dog', 'dogs', 'pet', 'tree']
    assert len(set(results['noun_ids'].tolist())) == 2
    with pytest.raises(ValueError, match=r"nouns_of.*'caption'.*'all_captions'.*'image'"):
        CaptionPrompts(1, nouns=words, nouns_of='image')


def test_without_prompts_the_caption_stands_alone() -> None:
    results = CaptionPrompts(0, context_length=16).transform({'caption': 'no nouns needed'})
    assert results['token_ids'].shape == (1, 16)
    assert results['noun_mask'].shape == results['noun_ids'].shape == (0,)
    results = CaptionPrompts(2, nouns=NOUNS).transform({'caption': 'nothing known'})
    assert not results['noun_mask'].any()
    assert torch.equal(results['token_ids'][1], results['token_ids'][0])


def test_long_captions_keep_their_end_token() -> None:
    prompts = CaptionPrompts(1, context_length=8, nouns=NOUNS)
    caption = 'a very very long caption with many words and a dog'
    row = prompts.transform({'caption': caption})['token_ids'][0]
    reference = TOKENIZER([caption], context_length=8)[0]
    assert torch.equal(row, reference)
    assert row[-1] == 49407
    assert row[0] == 49406
    assert prompts._truncation_logged


def test_the_tokenizer_forgets_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ovd.datasets.captions.transforms._TOKENIZER_CACHE', 3)
    prompts = CaptionPrompts(0)
    before = prompts.tokenize(['a dog and a cat <end_of_text>'])
    assert len(prompts.tokenizer.cache) > 3
    assert torch.equal(prompts.tokenize(['a dog and a cat <end_of_text>']), before)
    prompts.tokenize(['tree'])
    assert len(prompts.tokenizer.cache) < 5


def test_nouns_of_a_vocabulary_need_one() -> None:
    with pytest.raises(ValueError):
        CaptionPrompts(3, nouns={'backend': 'vocabulary'})


# --- pixels -------------------------------------------------------------------------------------------------


def picture(seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))


def test_augmentation_is_a_function_of_the_seed() -> None:
    augment = TimmAugment(32)
    results = []
    for seed in (3, 3, 4):
        seed_generators(seed)
        results.append(augment.transform({'img': picture()}))
    first, again, other = (result['img'] for result in results)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert results[0]['img_shape'] == (32, 32)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_randomness_only_the_size_changes() -> None:
    whole = TimmAugment(40, scale=(1, 1), ratio=(1, 1), flip_prob=0, auto_augment=None, erase_prob=0)
    image = np.full((40, 40, 3), (10, 100, 200), dtype=np.uint8)  # B, G, R stay in this order
    np.testing.assert_array_equal(whole.transform({'img': image})['img'], image)
    image = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    np.testing.assert_array_equal(whole.transform({'img': image})['img'], image)
    flip = TimmAugment(40, scale=(1, 1), ratio=(1, 1), flip_prob=1, auto_augment=None, erase_prob=0)
    np.testing.assert_array_equal(flip.transform({'img': image})['img'], image[:, ::-1])


def test_erased_pixels_are_noise_of_the_preprocessing() -> None:
    options: dict[str, Any] = {'scale': (1, 1), 'ratio': (1, 1), 'auto_augment': None}
    augment = TimmAugment(64, erase_prob=1, mean=(200, 100, 50), std=(4, 2, 1), **options)
    seed_generators(0)
    erased = [augment.transform({'img': np.zeros((64, 64, 3), np.uint8)})['img'] for _ in range(20)]
    shares, noise = [], []
    for image in erased:
        mask = image.any(-1)
        rows, columns = np.nonzero(mask)
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()  # one rectangle
        shares.append(mask.mean())
        noise.append(image[mask])
    assert 0.015 < min(shares) < max(shares) < 0.35
    values = np.concatenate(noise).astype(float)
    np.testing.assert_allclose(values.mean(0), (50, 100, 200), atol=0.3)  # BGR
    np.testing.assert_allclose(values.std(0), (1, 2, 4), rtol=0.1)
    quarter = TimmAugment(16, **options)
    touched = [quarter.transform({'img': np.zeros((16, 16, 3), np.uint8)})['img'].any() for _ in range(400)]
    assert 0.18 < np.mean(touched) < 0.32


# --- the sample ---------------------------------------------------------------------------------------------


def test_a_batch_is_what_the_model_takes(tmp_path: Path) -> None:
    options = write_coco(tmp_path, [['a dog'], ['a cat and a tree']])
    pipeline = [
        {'type': 'ovd.LoadImage'},
        {'type': 'ovd.TimmAugment', 'size': 32},
        {'type': 'ovd.CaptionPrompts', 'count': 2, 'nouns': NOUNS},
        {'type': 'ovd.PackCaptions'},
    ]
    dataset: Any = DATASETS.build(
        {
            'type': 'ovd.CaptionDataset',
            **options,
            'data_prefix': {'img_path': str(tmp_path / 'images')},
            'pipeline': pipeline,
        }
    )
    batch = pseudo_collate([dataset[0], dataset[1]])
    assert [image.shape for image in batch['inputs']] == [(3, 32, 32)] * 2
    assert batch['inputs'][0].dtype == torch.uint8
    sample = batch['data_samples'][1]
    assert sample.token_ids.shape == (3, 77)
    assert sample.noun_mask.tolist() == [True, True]
    assert set(sample.noun_ids.tolist()) == {noun_id('cat'), noun_id('tree')}
    assert sample.img_id == 11
    assert sample.caption == 'a cat and a tree'
    assert sample.ori_shape == (24, 32)
    assert sample.img_shape == (32, 32)
    preprocess = SegDataPreProcessor([0.0] * 3, [1.0] * 3, size_divisor=16, bgr_to_rgb=True)
    data = preprocess(batch, training=True)
    assert data['inputs'].shape == (2, 3, 32, 32)
    torch.testing.assert_close(data['inputs'][0], batch['inputs'][0].flip(0).float())
    assert data['data_samples'][1].token_ids.shape == (3, 77)


def test_packing_needs_tokens() -> None:
    with pytest.raises(KeyError, match='token_ids'):
        PackCaptions().transform({'img': np.zeros((2, 2, 3), np.uint8)})
    assert TRANSFORMS.get('ovd.PackCaptions') is PackCaptions
