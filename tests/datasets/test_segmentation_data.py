"""Segmentation data: label maps, painted instances, what each pixel becomes, and every broken file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.models import SegDataPreProcessor
from PIL import Image
from pycocotools import mask as mask_utils
from torch.utils.data import DataLoader

from ovd.datasets.segmentation.dataset import OpenVocabularySegDataset
from ovd.datasets.segmentation.label_maps import (
    IGNORE_INDEX,
    LabelTable,
    decode_mask,
    paint_instances,
    read_label_map,
    write_label_map,
)
from ovd.registry import DATASETS, TRANSFORMS
from ovd.shapes.files import ShapesPlan, write_shapes
from ovd.shapes.scenes import COLORS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path, write_coco, write_image

LOAD = [{'type': 'ovd.LoadImage'}, {'type': 'ovd.LoadSegmentation'}]
RAW = np.array([[0, 1, 1, 2], [0, 3, 255, 2], [0, 3, 3, 2]], np.uint8)  # ground, cat, dog, owl, border
NAMES = ['cat', 'dog', 'owl']
MARKED = {'raw_classes': NAMES, 'raw_ids': 1, 'background_ids': [0], 'ignore_ids': [255]}


@pytest.fixture(autouse=True)
def host() -> None:
    init_default_scope('mmseg')


def write_map(path: Path, raw: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(raw).save(path)
    return path


def write_pair(root: Path, stem: str, raw: np.ndarray) -> None:
    write_image(root / 'images' / f'{stem}.png', *raw.shape)
    write_map(root / 'maps' / f'{stem}.png', raw)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One picture ``a`` whose map is RAW."""
    write_pair(tmp_path, 'a', RAW)
    return tmp_path


def build(root: Path, **options: Any) -> OpenVocabularySegDataset:
    options = {'img_suffix': '.png', 'pipeline': LOAD, 'background': 'ignore', **MARKED, **options}
    options.setdefault('serialize_data', False)  # which collects garbage, a second in a large process
    return OpenVocabularySegDataset(
        data_root=str(root), data_prefix={'img_path': 'images', 'seg_map_path': 'maps'}, **options
    )


def labels_of(dataset: Any, index: int = 0) -> list[list[int]]:
    return dataset[index]['gt_seg_map'].tolist()


class TestLabels:
    def test_pixels_are_vocabulary_indices_background_is_last_and_borders_are_ignored(
        self, tree: Path
    ) -> None:
        dataset = build(tree, vocabulary=['owl', 'cat', 'dog'], background='class')
        assert labels_of(dataset) == [[3, 1, 1, 2], [3, 0, -1, 2], [3, 0, 0, 2]]
        sample = dataset[0]
        assert sample['gt_seg_map'].dtype == np.int16
        assert sample['seg_fields'] == ['gt_seg_map']
        assert 'label_table' not in sample
        meta = dataset.metainfo
        assert meta['classes'] == meta['seen_classes'] == meta['annotated_classes'] == ('owl', 'cat', 'dog')
        assert (meta['unseen_classes'], meta['background']) == ((), 'class')
        assert meta['vocabulary_hash'] == Vocabulary(['owl', 'cat', 'dog']).content_hash
        assert meta['ann_file'] == str(tree / 'maps')

    def test_the_default_vocabulary_is_the_raw_classes(self, tree: Path) -> None:
        dataset = build(tree)
        assert dataset.metainfo['classes'] == ('cat', 'dog', 'owl')
        assert labels_of(dataset) == [[-1, 0, 0, 1], [-1, 2, -1, 1], [-1, 2, 2, 1]]

    def test_background_none_refuses_background_pixels(self, tree: Path) -> None:
        with pytest.raises(ValueError, match="background='none'"):
            build(tree, background='none')
        dataset = build(tree, background='none', background_ids=[])
        with pytest.raises(ValueError, match=r'id 0 .*1\.\.3 and 255'):
            dataset[0]

    def test_names_match_without_case_and_punctuation_and_by_synonym(self, tree: Path) -> None:
        words = {'names': ['tom cat', 'hound', 'owl'], 'synonyms': {'hound': ['dog']}}
        dataset = build(tree, raw_classes=['Tom_Cat', 'dog', 'OWL'], vocabulary=words)
        assert labels_of(dataset) == [[-1, 0, 0, 1], [-1, 2, -1, 1], [-1, 2, 2, 1]]

    def test_raw_ids_with_gaps(self, tree: Path) -> None:
        dataset = build(tree, raw_ids=[2, 1, 3], vocabulary=NAMES)
        assert labels_of(dataset)[0] == [-1, 1, 1, 0]
        with pytest.raises(ValueError, match='raw_ids'):
            build(tree, raw_ids=[1, 2])
        by_mapping = build(tree, raw_classes={3: 'cat', 1: 'dog', 2: 'owl'})
        assert by_mapping.metainfo['classes'] == ('dog', 'owl', 'cat')
        assert labels_of(by_mapping)[0] == [-1, 0, 0, 1]

    def test_id_map_goes_before_names(self, tree: Path) -> None:
        dataset = build(tree, vocabulary=NAMES, id_map={2: 'cat', 3: None, 1: 1}, test_mode=True)
        assert labels_of(dataset) == [[-1, 1, 1, 0], [-1, -1, -1, 0], [-1, -1, -1, 0]]
        assert dataset.metainfo['annotated_classes'] == ('cat', 'dog')
        with pytest.raises(ValueError, match='7'):
            build(tree, vocabulary=NAMES, id_map={2: 7})
        with pytest.raises(ValueError, match='cow'):
            build(tree, vocabulary=NAMES, id_map={2: 'cow'})
        alone = build(tree, raw_classes=None, vocabulary=NAMES, id_map={1: 'cat', 2: 'dog', 3: 'owl'})
        assert labels_of(alone)[0] == [-1, 0, 0, 1]

    def test_aliases_join_classes(self, tree: Path) -> None:
        dataset = build(tree, vocabulary=['pet'], aliases={'cat': 'pet', 'dog': 'pet', 'owl': None})
        assert labels_of(dataset) == [[-1, 0, 0, 0], [-1, -1, -1, 0], [-1, -1, -1, 0]]
        with pytest.raises(ValueError, match='cow'):
            build(tree, aliases={'cow': 'cat'})

    def test_classes_outside_the_vocabulary(self, tree: Path) -> None:
        assert labels_of(build(tree, vocabulary=['dog']))[0] == [-1, -1, -1, 0]
        joined = build(tree, vocabulary=['dog'], absent_policy='background', background='class')
        assert labels_of(joined) == [[1, 1, 1, 0], [1, 1, -1, 0], [1, 1, 1, 0]]
        with pytest.raises(ValueError, match="'cat', 'owl'"):
            build(tree, vocabulary=['dog'], absent_policy='error')

    def test_words_without_pixels(self, tree: Path) -> None:
        with pytest.raises(ValueError, match='cow'):
            build(tree, vocabulary=['cat', 'cow'])
        for options in ({'test_mode': True}, {'extra_words_policy': 'keep'}):
            dataset = build(tree, vocabulary=['cow', 'cat'], **options)
            assert dataset.metainfo['annotated_classes'] == ('cat',)
            assert labels_of(dataset)[0] == [-1, 1, 1, -1]
        with pytest.raises(ValueError, match='cow'):
            build(tree, vocabulary=['cow'], test_mode=True)
        unseen = build(tree, vocabulary={'names': ['cat', 'cow'], 'novel': ['cow']})
        assert unseen.metainfo['unseen_classes'] == ('cow',)

    def test_an_id_with_two_meanings_is_refused(self, tree: Path) -> None:
        with pytest.raises(ValueError, match='id 3 '):
            build(tree, ignore_ids=[3])
        with pytest.raises(ValueError, match='id 0 '):
            build(tree, ignore_ids=[0])

    def test_misspelled_options_are_refused(self, tree: Path) -> None:
        for name in (
            *('background', 'absent_policy', 'unseen_policy', 'extra_words_policy'),
            *('crowd_policy', 'missing_policy'),
        ):
            with pytest.raises(ValueError, match=f'{name}.*drop it'):
                build(tree, **{name: 'drop it'})
        with pytest.raises(ValueError, match='raw_classes'):
            build(tree, raw_classes=None, background_ids=[], ignore_ids=[])


class TestUnseen:
    WORDS = {'names': NAMES, 'novel': ['dog']}

    def test_ignored_in_training_kept_in_testing(self, tree: Path) -> None:
        training = build(tree, vocabulary=self.WORDS)
        assert labels_of(training)[0] == [-1, 0, 0, -1]
        assert training.metainfo['seen_classes'] == ('cat', 'owl')
        assert training.metainfo['unseen_classes'] == ('dog',)
        assert labels_of(build(tree, vocabulary=self.WORDS, test_mode=True))[0] == [-1, 0, 0, 1]
        assert labels_of(build(tree, vocabulary=self.WORDS, unseen_policy='keep'))[0] == [-1, 0, 0, 1]

    def test_as_background(self, tree: Path) -> None:
        dataset = build(tree, vocabulary=self.WORDS, unseen_policy='background', background='class')
        assert labels_of(dataset)[0] == [3, 0, 0, 3]

    def test_leakage_is_refused(self, tree: Path) -> None:
        dataset = build(tree, vocabulary=self.WORDS, unseen_policy='error')
        with pytest.raises(ValueError, match=r"a\.png.* id 2 .*leakage.*'dog'"):
            dataset[0]
        write_map(tree / 'maps' / 'a.png', np.where(RAW == 2, 0, RAW).astype(np.uint8))
        assert labels_of(dataset)[0] == [-1, 0, 0, -1]


class TestFiles:
    def test_folder_and_list(self, tmp_path: Path) -> None:
        for stem in ('b', 'sub/a', 'c'):
            write_pair(tmp_path, stem, RAW)
        assert [build(tmp_path)[i]['img_id'] for i in range(3)] == ['b', 'c', 'sub/a']
        (tmp_path / 'list.txt').write_text('c\n\nsub/a\n')
        listed = build(tmp_path, ann_file='list.txt')
        assert [listed.get_data_info(i)['img_id'] for i in range(2)] == ['c', 'sub/a']
        assert listed.metainfo['ann_file'] == str(tmp_path / 'list.txt')
        assert listed[1]['seg_map_path'] == str(tmp_path / 'maps' / 'sub' / 'a.png')
        with pytest.raises(FileNotFoundError, match=r'none\.txt'):
            build(tmp_path, ann_file='none.txt')

    def test_suffixes(self, tmp_path: Path) -> None:
        write_image(tmp_path / 'images' / 'x_left.png', *RAW.shape)
        write_map(tmp_path / 'maps' / 'x_ids.png', RAW)
        dataset = build(tmp_path, img_suffix='_left.png', seg_map_suffix='_ids.png')
        assert dataset[0]['seg_map_path'].endswith('maps/x_ids.png')
        with pytest.raises(ValueError, match='images'):
            build(tmp_path, img_suffix='_right.png')

    def test_missing_files(self, tmp_path: Path) -> None:
        for stem in ('a', 'b', 'c'):
            write_pair(tmp_path, stem, RAW)
        (tmp_path / 'maps' / 'b.png').unlink()
        with pytest.raises(FileNotFoundError, match=r'b\.png.*1 of 3'):
            build(tmp_path)
        dataset = build(tmp_path, missing_policy='drop')
        assert [dataset[i]['img_id'] for i in range(len(dataset))] == ['a', 'c']
        (tmp_path / 'list.txt').write_text('a\nd\n')
        with pytest.raises(FileNotFoundError, match=r'd\.png.*1 of 2'):
            build(tmp_path, ann_file='list.txt')
        with pytest.raises(FileNotFoundError, match='pictures'):
            OpenVocabularySegDataset(
                raw_classes=NAMES, data_prefix={'img_path': 'pictures'}, data_root=str(tmp_path)
            )

    def test_broken_maps_are_named(self, tree: Path) -> None:
        dataset, path = build(tree), tree / 'maps' / 'a.png'
        whole = write_map(path, np.random.default_rng(0).integers(0, 4, (64, 64), np.uint8)).read_bytes()
        for content in (b'', b'no picture', whole[: len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r'a\.png'):
                dataset[0]
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r'a\.png'):
            dataset[0]

    def test_colour_maps_are_refused_and_turned_to_grey_on_demand(self, tmp_path: Path) -> None:
        path = write_map(tmp_path / 'm.png', np.full((2, 3, 3), [10, 20, 30], np.uint8))
        with pytest.raises(ValueError, match=r'm\.png.*RGB'):
            read_label_map(path)
        assert (read_label_map(path, to_grey=True) == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)).all()
        with pytest.raises(ValueError, match='mode F'):
            read_label_map(Path(write_float_tiff(tmp_path)))

    def test_size_must_be_that_of_the_image(self, tree: Path) -> None:
        write_map(tree / 'maps' / 'a.png', RAW[:, :3])
        with pytest.raises(ValueError, match=r'3 x 3 .*4 x 3$'):
            build(tree)[0]
        write_map(tree / 'maps' / 'a.png', np.ascontiguousarray(RAW.T))
        with pytest.raises(ValueError, match=r'3 x 4 .*exif=False'):
            build(tree)[0]

    def test_an_unknown_id_is_named_with_its_file(self, tree: Path) -> None:
        raw = RAW.copy()
        raw[0, :2] = 9, 77
        write_map(tree / 'maps' / 'a.png', raw)
        with pytest.raises(
            ValueError,
            match=r'a\.png.* id 9 .*0\.\.3 and 255$',
        ):
            build(tree)[0]

    def test_palette_maps_count_by_index(self, tmp_path: Path) -> None:
        image = Image.fromarray(RAW)
        image = image.convert('P')
        image.putdata(RAW.ravel().tolist())
        image.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
        image.save(tmp_path / 'p.png')
        assert (read_label_map(tmp_path / 'p.png') == RAW).all()

    def test_bilevel_maps(self, tmp_path: Path) -> None:
        raw = read_label_map(write_map(tmp_path / 'b.png', RAW > 1))
        assert LabelTable({0: -1, 1: 4}).apply(raw, 'b').tolist() == np.where(RAW > 1, 4, -1).tolist()

    def test_an_image_without_labels_says_so(self, tree: Path) -> None:
        dataset = OpenVocabularySegDataset(
            data_root=str(tree),
            data_prefix={'img_path': 'images'},
            raw_classes=NAMES,
            img_suffix='.png',
            pipeline=LOAD,
        )
        with pytest.raises(KeyError, match='seg_map_path'):
            dataset[0]

    def test_workers_read_the_same(self, tree: Path) -> None:
        write_pair(tree, 'b', np.fliplr(RAW).copy())
        dataset = build(tree, serialize_data=True)
        loader = DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=pseudo_collate)
        for index, batch in enumerate(loader):
            assert batch['gt_seg_map'][0].tolist() == labels_of(dataset, index)


def write_float_tiff(folder: Path) -> str:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(folder / 'f.tiff')
    return str(folder / 'f.tiff')


class TestManyClasses:
    def test_no_cliff_at_255_and_256(self, tmp_path: Path) -> None:
        names = [f'class {i}' for i in range(300)]
        raw = np.array([[254, 255, 256], [257, 299, 0]], np.uint16)
        write_pair(tmp_path, 'a', raw)
        dataset = build(
            tmp_path, raw_classes=names, raw_ids=0, background_ids=[], ignore_ids=[], background='none'
        )
        assert labels_of(dataset) == raw.tolist()
        reversed_names = build(
            tmp_path,
            raw_classes=names,
            raw_ids=0,
            background_ids=[300],
            ignore_ids=[65535],
            vocabulary=names[::-1],
            background='class',
        )
        assert labels_of(reversed_names) == (299 - raw.astype(int)).tolist()
        write_map(tmp_path / 'maps' / 'a.png', np.array([[300, 65535, 0]] * 2, np.uint16))
        assert labels_of(reversed_names) == [[300, -1, 299]] * 2
        write_map(tmp_path / 'maps' / 'a.png', np.array([[301, 65535, 0]] * 2, np.uint16))
        with pytest.raises(ValueError, match=r'id 301 .*0\.\.300 and 65535'):
            reversed_names[0]

    def test_wide_labels_take_32_bits(self) -> None:
        assert LabelTable({5: 32766}).apply(np.full((1, 1), 5), 'x').dtype == np.int16
        table = LabelTable({5: 32767, 6: -1})
        labels = table.apply(np.array([[5, 6]], np.uint16), 'x')
        assert (labels.dtype, labels.tolist()) == (np.int32, [[32767, -1]])

    def test_raw_ids_must_fit_a_file(self) -> None:
        for wrong in (-1, 65536, '3'):
            with pytest.raises(ValueError, match=repr(wrong)):
                LabelTable({wrong: 0})  # type: ignore[dict-item]

    @pytest.mark.parametrize(('count', 'kind', 'top'), [(255, np.uint8, 255), (256, np.uint16, 65535)])
    def test_written_maps_read_back(self, tmp_path: Path, count: int, kind: type, top: int) -> None:
        labels = np.array([[0, count - 1, -1]])
        write_label_map(tmp_path / 'm.png', labels, count)
        stored = read_label_map(tmp_path / 'm.png')
        assert (stored.dtype, stored.tolist()) == (kind, [[0, count - 1, top]])


def square(x: int, y: int, side: int) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


class TestPainting:
    def test_small_on_large_whatever_the_order(self) -> None:
        large, small = (7, square(1, 1, 5)), (4, square(2, 2, 2))
        expected = np.zeros((8, 8), int)
        expected[1:6, 1:6] = 7
        expected[2:4, 2:4] = 4
        for segments in ([large, small], [small, large]):
            assert (paint_instances(segments, 8, 8, 0, 'x') == expected).all()

    def test_of_equal_ones_the_later_is_on_top(self) -> None:
        painted = paint_instances([(3, square(0, 0, 4)), (5, square(2, 0, 4))], 4, 6, 9, 'x')
        assert painted.tolist() == [[3, 3, 5, 5, 5, 5]] * 4

    def test_every_kind_of_mask(self) -> None:
        mask = np.zeros((5, 7), np.uint8)
        mask[1:4, 2:6] = 1
        packed = mask_utils.encode(np.asfortranarray(mask))
        columns = mask.T.ravel().tolist()
        counts, value = [], 0
        while columns:
            run = next((i for i, pixel in enumerate(columns) if pixel != value), len(columns))
            counts.append(run)
            columns, value = columns[run:], 1 - value
        for code in (
            {'size': [5, 7], 'counts': packed['counts'].decode()},
            {'size': [5, 7], 'counts': counts},
            [[2, 1, 6, 1, 6, 4, 2, 4]],
            [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 6, 1, 6, 4, 4, 4]],
        ):
            assert (decode_mask(code, 5, 7, 'x') == mask.astype(bool)).all()

    @pytest.mark.parametrize(
        ('code', 'message'),
        [
            ({'size': [7, 5], 'counts': 'x'}, r'pic.*\[7, 5\]'),
            ([[1, 2, 3, 4]], r'pic.*\[1, 2, 3, 4\]'),
            ([], r'pic.*\[\]'),
            ('', "pic.*''"),
        ],
    )
    def test_broken_masks(self, code: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            decode_mask(code, 5, 7, 'pic')


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """A large cat with a dog on it, and a far owl; category ids 5, 2, 9."""
    file = write_coco(
        tmp_path, NAMES, [[(0, [0, 0, 6, 6]), (1, [1, 1, 2, 2]), (2, [7, 0, 1, 6])], []], (6, 8), [5, 2, 9]
    )
    content = json.loads(file.read_text())
    for annotation, color in zip(content['annotations'], ('red', 'blue', 'red')):
        annotation['attributes'] = {'color': color}
    file.write_text(json.dumps(content))
    return file


def painted(file: Path, **options: Any) -> OpenVocabularySegDataset:
    options = {'background': 'class', 'pipeline': LOAD, 'serialize_data': False, **options}
    return OpenVocabularySegDataset(
        ann_file=str(file), data_prefix={'img_path': str(file.parent / 'images')}, **options
    )


def change(file: Path, number: int, **fields: Any) -> None:
    content = json.loads(file.read_text())
    content['annotations'][number].update(fields)
    file.write_text(json.dumps(content))


class TestInstances:
    EXPECTED = [[1, 1, 1, 1, 1, 1, 3, 2], [1, 0, 0, 1, 1, 1, 3, 2]]

    def test_painted_by_rising_id(self, instances: Path) -> None:
        dataset = painted(instances)
        assert dataset.metainfo['classes'] == ('dog', 'cat', 'owl')
        assert labels_of(dataset)[:2] == self.EXPECTED
        assert labels_of(dataset, 1) == [[3] * 8] * 6  # an image without instances
        assert dataset[0]['img_id'] == 1
        assert labels_of(painted(instances, background='ignore'))[0][6] == -1

    def test_vocabulary_and_absent_classes(self, instances: Path) -> None:
        dataset = painted(instances, vocabulary=['cat'])
        assert labels_of(dataset)[1] == [0, -1, -1, 0, 0, 0, 1, -1]
        assert labels_of(painted(instances, vocabulary=['cat'], absent_policy='background'))[1] == [
            *[0, 1, 1, 0, 0, 0, 1, 1]
        ]

    def test_crowds(self, instances: Path) -> None:
        change(instances, 1, iscrowd=1)
        assert labels_of(painted(instances))[1] == self.EXPECTED[1]
        assert labels_of(painted(instances, crowd_policy='drop'))[1] == [1, -1, -1, 1, 1, 1, 3, 2]
        assert labels_of(painted(instances, crowd_policy='skip'))[1] == [1, 1, 1, 1, 1, 1, 3, 2]

    def test_names_joined_from_attributes(self, instances: Path) -> None:
        words = {'names': ['red cat', 'blue cat', 'blue dog', 'red owl'], 'novel': ['red owl']}
        options = {'vocabulary': words, 'label_by': ('attributes.color', 'category')}
        assert labels_of(painted(instances, **options))[1] == [0, 2, 2, 0, 0, 0, 4, -1]
        dataset = painted(instances, test_mode=True, **options)
        assert labels_of(dataset)[1] == [0, 2, 2, 0, 0, 0, 4, 3]
        assert dataset.metainfo['annotated_classes'] == ('red cat', 'blue dog', 'red owl')
        colors = painted(instances, label_by='attributes.color')
        assert colors.metainfo['classes'] == ('blue', 'red')
        with pytest.raises(ValueError, match=r'attributes\.size'):
            painted(instances, label_by='attributes.size')

    def test_arguments_of_the_other_kind_are_refused(self, instances: Path) -> None:
        with pytest.raises(ValueError, match='raw_classes'):
            painted(instances, raw_classes=NAMES)
        with pytest.raises(ValueError, match='background'):
            painted(instances, background='none')

    def test_an_annotation_without_mask_is_refused(self, instances: Path) -> None:
        change(instances, 2, segmentation=[])
        with pytest.raises(ValueError, match='annotation 3'):
            painted(instances)

    def test_the_annotated_size_is_checked(self, instances: Path) -> None:
        write_image(instances.parent / 'images' / '000000.png', 5, 8)
        with pytest.raises(ValueError, match='8 x 6'):
            painted(instances)[0]

    def test_ov_shapes_painted_equals_its_semantic_maps(self, tmp_path: Path) -> None:
        write_shapes(tmp_path, ShapesPlan({'train': 6, 'val': 0, 'test': 2}, size=64))
        options = {
            'vocabulary': 'shapes',
            'background': 'class',
            'pipeline': LOAD,
            'data_root': str(tmp_path),
        }
        options['extra_words_policy'] = 'keep'
        files = {'raw_classes': 'shapes', 'raw_ids': 1, 'background_ids': [0], 'img_suffix': '.png'}
        for unseen in ('keep', 'drop'):
            one = OpenVocabularySegDataset(
                'annotations/instances_train_all.json',
                data_prefix={'img_path': 'train'},
                unseen_policy=unseen,
                **options,
            )
            other = OpenVocabularySegDataset(
                data_prefix={'img_path': 'train', 'seg_map_path': 'semantic/train'},
                unseen_policy=unseen,
                **files,
                **options,
            )
            for index in range(6):
                assert labels_of(one, index) == labels_of(other, index)
        base = OpenVocabularySegDataset(
            'annotations/instances_train.json',
            data_prefix={'img_path': 'train'},
            unseen_policy='error',
            **options,
        )
        found = {label for i in range(6) for row in labels_of(base, i) for label in row}
        assert not found & {Vocabulary.parse('shapes').index(name) for name in ('heart', 'fish', 'house')}

    def test_coco_mini(self) -> None:
        folder = shared_path('data/coco_mini')
        file = folder / 'annotations' / 'instances_val2017.json'
        dataset = OpenVocabularySegDataset(
            str(file),
            data_prefix={'img_path': str(folder / 'val2017')},
            vocabulary='coco',
            background='class',
            test_mode=True,
            pipeline=LOAD,
        )
        content = json.loads(file.read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        for index in range(min(5, len(dataset))):
            sample = dataset[index]
            labels, image = sample['gt_seg_map'], sample['img_id']
            found = set(np.unique(labels).tolist()) - {80}
            own = [item for item in content['annotations'] if item['image_id'] == image]
            words = {Vocabulary.parse('coco').index(names[item['category_id']]) for item in own}
            assert found <= words
            covered = np.zeros(labels.shape, bool)
            for item in own:
                covered |= decode_mask(item['segmentation'], *labels.shape, 'x')
            assert ((labels == 80) == ~covered).all()


class TestPipelines:
    """The hosts' steps keep whole numbers whole and the ignored pixels ignored."""

    def sample(self, kind: type, height: int = 40, width: int = 60) -> dict[str, Any]:
        random = np.random.default_rng(0)
        labels = random.choice([-1, 0, 3, 300, 1000], size=(height // 10, width // 10)).astype(kind)
        return {
            'img': random.integers(0, 256, (height, width, 3), dtype=np.uint8),
            'img_shape': (height, width),
            'ori_shape': (height, width),
            'gt_seg_map': labels.repeat(10, 0).repeat(10, 1),
            'seg_fields': ['gt_seg_map'],
        }

    @pytest.mark.parametrize('kind', [np.int16, np.int32])
    @pytest.mark.parametrize(
        'step',
        [
            {'type': 'RandomResize', 'scale': (52, 52), 'ratio_range': (0.5, 2.0), 'keep_ratio': True},
            {'type': 'Resize', 'scale': (33, 47), 'keep_ratio': False},
            {'type': 'Pad', 'size': (70, 80), 'pad_val': {'img': 0, 'seg': -1}},
            {'type': 'RandomCrop', 'crop_size': (24, 24), 'ignore_index': -1, 'cat_max_ratio': 0.75},
            {'type': 'RandomFlip', 'prob': 1.0},
            {'type': 'PhotoMetricDistortion'},
            {'type': 'RandomRotate', 'prob': 1.0, 'degree': 20, 'seg_pad_val': -1},
        ],
        ids=lambda step: str(step['type']) if isinstance(step, dict) else step.__name__,
    )
    def test_step(self, step: dict[str, Any], kind: type) -> None:
        before = self.sample(kind)
        known = set(np.unique(before['gt_seg_map']).tolist())
        after = TRANSFORMS.build(step)(before)
        labels = after['gt_seg_map']
        assert labels.dtype == kind
        assert labels.shape == after['img'].shape[:2]
        assert set(np.unique(labels).tolist()) <= known

    def test_padding_is_ignored_and_flips_follow_the_image(self) -> None:
        before = self.sample(np.int16)
        flipped = TRANSFORMS.build({'type': 'RandomFlip', 'prob': 1.0})(dict(before))
        assert (flipped['gt_seg_map'] == before['gt_seg_map'][:, ::-1]).all()
        pad = {'type': 'Pad', 'size': (70, 80), 'pad_val': {'img': 0, 'seg': -1}}
        padded = TRANSFORMS.build(pad)(dict(before))
        assert (padded['gt_seg_map'][40:] == -1).all()
        assert (padded['gt_seg_map'][:, 60:] == -1).all()
        assert (padded['gt_seg_map'][:40, :60] == before['gt_seg_map']).all()

    def test_the_training_pipeline_of_the_paper_to_a_batch(self, tmp_path: Path) -> None:
        for stem, shape in (('a', (30, 60)), ('b', (64, 32))):
            write_pair(tmp_path, stem, np.resize(RAW, shape))
        dataset = build(
            tmp_path,
            background='class',
            pipeline=[
                *LOAD,
                {'type': 'RandomFlip', 'prob': 0.5},
                {'type': 'RandomResize', 'scale': (52, 52), 'ratio_range': (0.5, 2.0), 'keep_ratio': True},
                {'type': 'Pad', 'size': (48, 48), 'pad_val': {'img': 0, 'seg': -1}},
                {'type': 'RandomCrop', 'crop_size': (48, 48), 'ignore_index': -1},
                {'type': 'PackSegInputs'},
            ],
        )
        batch = pseudo_collate([dataset[0], dataset[1]])
        preprocessor = SegDataPreProcessor(size=(48, 48), seg_pad_val=-1, mean=[0] * 3, std=[1] * 3)
        ready = preprocessor(batch, training=True)
        assert ready['inputs'].shape == (2, 3, 48, 48)
        for sample in ready['data_samples']:
            labels = sample.gt_sem_seg.data
            assert (labels.dtype, labels.shape) == (torch.int64, (1, 48, 48))
            assert set(labels.unique().tolist()) <= {-1, 0, 1, 2, 3}

    def test_labels_loaded_after_resizing_stay_in_the_original_frame(self, tree: Path) -> None:
        pipeline = [
            LOAD[0],
            {'type': 'Resize', 'scale': (16, 12), 'keep_ratio': True},
            LOAD[1],
            {'type': 'PackSegInputs'},
        ]
        sample = build(tree, pipeline=pipeline)[0]
        assert sample['inputs'].shape == (3, 12, 16)
        assert sample['data_samples'].gt_sem_seg.data.shape == (1, 3, 4)
        assert sample['data_samples'].ori_shape == (3, 4)

    def test_preprocessor_pads_uneven_labels_with_ignored(self, tree: Path) -> None:
        write_pair(tree, 'b', np.resize(RAW, (5, 3)))
        dataset = build(tree, pipeline=[*LOAD, {'type': 'PackSegInputs'}])
        preprocessor = SegDataPreProcessor(size_divisor=8, seg_pad_val=-1)
        samples = preprocessor(pseudo_collate([dataset[0], dataset[1]]), training=True)['data_samples']
        assert [sample.gt_sem_seg.shape for sample in samples] == [(8, 8)] * 2
        assert (samples[1].gt_sem_seg.data[0, 5:] == IGNORE_INDEX).all()


def test_colour_noun_pairs_agree_with_the_drawing() -> None:
    pairs, nouns = Vocabulary.parse('shapes_pairs'), Vocabulary.parse('shapes').names
    assert pairs.names == tuple(f'{color} {noun}' for noun in nouns for color in COLORS)
    assert len(pairs) == 240
    assert len(pairs.novel_names) == 48
    seen_colors, seen_nouns = zip(*(name.split() for name in pairs.base_names))
    assert set(seen_colors) == set(COLORS)
    assert set(seen_nouns) == set(nouns)
    unseen_colors, unseen_nouns = zip(*(name.split() for name in pairs.novel_names))
    assert set(Counter(unseen_nouns).values()) == {2}
    assert set(Counter(unseen_colors).values()) == {4, 5}


def test_registered() -> None:
    assert DATASETS.get('ovd.OpenVocabularySegDataset') is OpenVocabularySegDataset
