"""Several segmentation data sets under one vocabulary, their weights, and the tables of shipped configs."""

from collections import Counter
from pathlib import Path
from typing import Any

import mmseg.datasets
import numpy as np
import pytest
from mmengine.dataset import ConcatDataset
from mmengine.registry import DATA_SAMPLERS, init_default_scope
from PIL import Image

from ovd.config import CONFIG_ROOT, load_config
from ovd.datasets.segmentation.label_rules import LabelRules, name_ids
from ovd.datasets.segmentation.unified_vocabulary import UnifiedSegDataset, WeightedPartsSampler
from ovd.registry import DATASETS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import write_image

LOAD = [{'type': 'ovd.LoadImage'}, {'type': 'ovd.LoadSegmentation'}]
COMMON = {
    'type': 'ovd.OpenVocabularySegDataset',
    'pipeline': LOAD,
    'img_suffix': '.png',
    'absent_policy': 'error',
    'serialize_data': False,
}
WORDS = {'names': ['sofa', 'person', 'car'], 'synonyms': {'sofa': ['couch']}}


@pytest.fixture(autouse=True)
def host() -> None:
    init_default_scope('mmseg')


def part(root: Path, name: str, raw: list[list[int]], count: int = 1, **options: Any) -> dict[str, Any]:
    for index in range(count):
        write_image(root / name / 'images' / f'{index}.png', len(raw), len(raw[0]))
        (root / name / 'maps').mkdir(exist_ok=True)
        Image.fromarray(np.array(raw, np.uint8)).save(root / name / 'maps' / f'{index}.png')
    prefix = {'img_path': 'images', 'seg_map_path': 'maps'}
    return {'data_root': str(root / name), 'data_prefix': prefix, **options}


@pytest.fixture
def parts(tmp_path: Path) -> list[dict[str, Any]]:
    home = part(tmp_path, 'home', [[1, 2, 0]], 2, raw_classes=['Couch', 'person'], raw_ids=1, ignore_ids=[0])
    street = part(
        tmp_path,
        'street',
        [[0, 1, 2, 255]],
        raw_classes=['car', 'rider', 'road'],
        ignore_ids=[255],
        aliases={'rider': 'person', 'road': None},
    )
    return [home, street]


class TestUnified:
    def test_one_vocabulary_for_all_parts(self, parts: list[dict[str, Any]]) -> None:
        dataset = UnifiedSegDataset(WORDS, parts, COMMON)
        assert [dataset[i]['gt_seg_map'].tolist() for i in range(3)] == [
            [[0, 1, -1]],
            [[0, 1, -1]],
            [[2, 1, -1, -1]],
        ]
        meta = dataset.metainfo
        assert meta['classes'] == meta['annotated_classes'] == ('sofa', 'person', 'car')
        assert meta['background'] == 'none'
        assert meta['ann_file'].endswith('street/maps')
        assert meta['vocabulary_hash'] == Vocabulary.parse(WORDS).content_hash

    def test_built_from_a_config(self, parts: list[dict[str, Any]]) -> None:
        config = {'type': 'ovd.UnifiedSegDataset', 'vocabulary': WORDS, 'parts': parts, 'common': COMMON}
        assert len(DATASETS.build(config)) == 3

    def test_classes_without_a_word_are_refused_or_ignored(self, parts: list[dict[str, Any]]) -> None:
        del parts[1]['aliases']
        with pytest.raises(ValueError, match="'rider', 'road'"):
            UnifiedSegDataset(WORDS, parts, COMMON)
        dataset = UnifiedSegDataset(WORDS, parts, {**COMMON, 'absent_policy': 'drop'})
        assert dataset[2]['gt_seg_map'].tolist() == [[2, -1, -1, -1]]

    def test_words_that_no_part_has(self, parts: list[dict[str, Any]]) -> None:
        words = {**WORDS, 'names': [*WORDS['names'], 'cow']}
        with pytest.raises(ValueError, match='cow'):
            UnifiedSegDataset(words, parts, COMMON)
        dataset = UnifiedSegDataset(words, parts, COMMON, test_mode=True)
        assert dataset.metainfo['annotated_classes'] == ('sofa', 'person', 'car')
        assert UnifiedSegDataset({**words, 'novel': ['cow']}, parts, COMMON).metainfo['unseen_classes'] == (
            'cow',
        )

    def test_parts_may_differ_in_background(self, parts: list[dict[str, Any]]) -> None:
        parts[0] |= {'background': 'class', 'background_ids': [0], 'ignore_ids': []}
        dataset = UnifiedSegDataset(WORDS, parts, COMMON)
        assert dataset.metainfo['background'] == 'class'
        assert dataset[0]['gt_seg_map'].tolist() == [[0, 1, 3]]

    def test_bad_parts(self, parts: list[dict[str, Any]]) -> None:
        with pytest.raises(ValueError, match='part 0 '):
            UnifiedSegDataset(WORDS, [{**parts[0], 'vocabulary': 'voc'}], COMMON)


class TestSampler:
    def take(self, count: int, **options: Any) -> list[int]:
        dataset = ConcatDataset.__new__(ConcatDataset)
        dataset._fully_initialized = True
        dataset.datasets, dataset.cumulative_sizes = [range(10), range(1000), range(5)], [10, 1010, 1015]
        sampler = WeightedPartsSampler(dataset, seed=0, **options)
        assert len(sampler) == 1015
        return [index for index, _ in zip(sampler, range(count))]

    def test_parts_come_by_weight_whatever_their_size(self) -> None:
        parts = Counter(0 if i < 10 else 1 if i < 1010 else 2 for i in self.take(6000))
        assert all(abs(parts[part] - 2000) < 150 for part in range(3))
        weighted = Counter(i >= 1010 for i in self.take(4000, weights=[0, 3, 1]))
        assert abs(weighted[True] - 1000) < 120

    def test_within_a_part_rounds_are_complete(self) -> None:
        small = [i for i in self.take(6000) if i < 10]
        for start in range(0, 1000, 10):
            assert sorted(small[start : start + 10]) == list(range(10))
        assert small[:10] != small[10:20]

    def test_processes_share_one_sequence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = self.take(200)
        shares = []
        for rank in range(2):
            monkeypatch.setattr(
                'ovd.datasets.segmentation.unified_vocabulary.get_dist_info', lambda rank=rank: (rank, 2)
            )
            shares.append(self.take(100))
        assert [index for pair in zip(*shares) for index in pair] == whole

    def test_a_resumed_run_goes_on(self, parts: list[dict[str, Any]]) -> None:
        dataset = UnifiedSegDataset(WORDS, parts, COMMON)
        sampler = DATA_SAMPLERS.build(
            {'type': 'ovd.WeightedPartsSampler', 'dataset': dataset, 'weights': [1, 1], 'seed': 3}
        )
        before = [index for index, _ in zip(sampler, range(30))]
        sampler.skip(12)
        assert [index for index, _ in zip(sampler, range(18))] == before[12:]

    def test_bad_weights(self) -> None:
        for weights in ([1, 2], [1, -1, 1], [0, 0, 0]):
            with pytest.raises(ValueError, match='weights'):
                self.take(1, weights=weights)


OWN_WORDS = {'context': 'context59', 'voc': 'voc', 'coco_object': 'coco', 'ade': 'ade150'}
OWN_WORDS |= {'coco_stuff': 'cocostuff171'}
OTHER_WORDS = {'voc': 'voc_groupvit', 'context': 'context59_groupvit', 'ade': 'ade150_lseg'}


def dataset_configs() -> list[tuple[str, str, dict[str, Any]]]:
    """(base, section, config) of every label-map data set of the shipped bases."""
    found = []
    folder = CONFIG_ROOT / '_base_' / 'datasets'
    configs = {name: load_config(folder / 'segmentation.py', {'data': name}) for name in OWN_WORDS}
    configs['mix7'] = load_config(folder / 'mix7_seg.py')
    for name, config in configs.items():
        for section in ('train_dataloader', 'test_dataloader'):
            if section in config:
                dataset = config[section].dataset
                for entry in dataset.get('parts', [dataset]):
                    if 'raw_classes' in entry:
                        found.append((name, section, {**dataset.get('common', {}), **entry}))
    return found


@pytest.mark.parametrize(
    ('base', 'section', 'config'),
    dataset_configs(),
    ids=lambda value: value if isinstance(value, str) else value['data_root'],
)
def test_the_ids_of_every_base_have_one_meaning(base: str, section: str, config: dict[str, Any]) -> None:
    fields = ('background', 'background_ids', 'ignore_ids', 'absent_policy', 'aliases')
    rules = LabelRules(extra_words_policy='keep', **{key: config[key] for key in fields if key in config})
    raw_classes = name_ids(config['raw_classes'], config.get('raw_ids', 0))
    for words in filter(None, (OWN_WORDS.get(base, base), OTHER_WORDS.get(base))):
        vocabulary = Vocabulary.parse(words)
        resolved = rules.resolve(vocabulary, raw_classes, base)
        labels = resolved.table.labels
        ids = set(raw_classes) | set(rules.background_ids) | set(rules.ignore_ids)
        assert set(labels) == ids
        if base != 'mix7':
            assert [labels[raw] for raw in sorted(raw_classes)] == list(range(len(vocabulary)))
        for raw in rules.background_ids:
            assert labels[raw] == (len(vocabulary) if rules.background == 'class' else -1)


def test_every_word_of_the_mix_has_pixels_somewhere() -> None:
    vocabulary = Vocabulary.parse('mix7')
    annotated: set[int] = set()
    for base, _, config in dataset_configs():
        if base == 'mix7':
            rules = LabelRules(
                extra_words_policy='keep', absent_policy='error', aliases=config.get('aliases', {})
            )
            raw_classes = name_ids(config['raw_classes'])
            annotated |= set(rules.resolve(vocabulary, raw_classes, base).annotated)
    assert annotated == set(range(len(vocabulary)))


def test_class_lists_are_those_of_mmseg() -> None:
    for words, peer, drop in (
        ('ade150', 'ADE20KDataset', 0),
        ('cityscapes', 'CityscapesDataset', 0),
        ('cityscapes', 'BDD100KDataset', 0),
        ('cocostuff171', 'COCOStuffDataset', 0),
        ('mapillary65', 'MapillaryDataset_v1', 1),
    ):
        theirs = [name.strip().lower() for name in getattr(mmseg.datasets, peer).METAINFO['classes']]
        assert list(Vocabulary.parse(words).names) == theirs[: len(theirs) - drop]
    for words, peer, first in (('voc', 'PascalVOCDataset', 1), ('context59', 'PascalContextDataset59', 0)):
        theirs = [name.replace(' ', '') for name in getattr(mmseg.datasets, peer).METAINFO['classes']]
        assert [name.replace(' ', '') for name in Vocabulary.parse(words).names] == theirs[first:]
