"""Data sets with base and novel classes: labels, splits, leakage, broken annotations."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, pseudo_collate
from pycocotools import mask as mask_utils
from torch.utils.data import DataLoader

from ovd.datasets.annotations import match_categories, read_annotations
from ovd.datasets.detection.base_novel import OpenVocabularyDataset
from ovd.registry import DATASETS, TRANSFORMS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path, write_coco

BOX = [4.0, 6.0, 20.0, 10.0]
OTHER_BOX = [30.0, 20.0, 8.0, 12.0]


def build(annotations: Path, **options: Any) -> OpenVocabularyDataset:
    return OpenVocabularyDataset(
        ann_file=str(annotations), data_prefix={'img': str(annotations.parent / 'images')}, **options
    )


def edit(annotations: Path, change: Any) -> Path:
    content = json.loads(annotations.read_text())
    change(content)
    annotations.write_text(json.dumps(content))
    return annotations


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Ids 5, 2, 9 of cat, dog, owl; image 1 has cat and dog, image 2 owl, image 3 nothing."""
    return write_coco(
        tmp_path, ['cat', 'dog', 'owl'], [[(0, BOX), (1, OTHER_BOX)], [(2, BOX)], []], category_ids=[5, 2, 9]
    )


def labels_of(dataset: OpenVocabularyDataset) -> list[list[int]]:
    return [[instance['bbox_label'] for instance in info['instances']] for info in dataset]


class TestLabels:
    def test_labels_are_vocabulary_indices_not_category_order(self, toy: Path) -> None:
        dataset = build(toy, vocabulary=['owl', 'cat', 'dog'])
        assert labels_of(dataset) == [[1, 2], [0], []]
        assert dataset.metainfo['classes'] == ('owl', 'cat', 'dog')
        assert dataset.metainfo['category_ids'] == (9, 5, 2)
        assert dataset.metainfo['vocabulary_hash'] == Vocabulary(['owl', 'cat', 'dog']).content_hash
        assert dataset.get_cat_ids(0) == [1, 2]

    def test_default_vocabulary_is_the_file_by_rising_id(self, toy: Path) -> None:
        assert build(toy).metainfo['classes'] == ('dog', 'cat', 'owl')

    def test_box_mask_and_image_fields(self, toy: Path) -> None:
        info = build(toy)[0]
        assert info['img_path'] == str(toy.parent / 'images' / '000000.png')
        assert (info['img_id'], info['height'], info['width']) == (1, 48, 64)
        instance = info['instances'][0]
        assert instance['bbox'] == [4, 6, 24, 16]
        assert instance['ignore_flag'] == 0
        assert instance['mask'] == [[4, 6, 24, 6, 24, 16, 4, 16]]

    def test_crowd_is_ignored_not_lost(self, toy: Path) -> None:
        edit(toy, lambda content: content['annotations'][0].update(iscrowd=1))
        assert [instance['ignore_flag'] for instance in build(toy)[0]['instances']] == [1, 0]

    def test_one_class_only(self, toy: Path) -> None:
        dataset = build(toy, vocabulary=['dog'])
        assert labels_of(dataset) == [[0], [], []]
        assert dataset.metainfo['base_classes'] == ('dog',)
        assert dataset.metainfo['novel_classes'] == ()

    def test_unmatched_word_is_refused_in_training_and_competes_in_testing(self, toy: Path) -> None:
        with pytest.raises(ValueError, match=r"1.*'cta'.*'dog'.*'cat'"):
            build(toy, vocabulary=['cta', 'dog'])
        assert build(toy, vocabulary=['cta', 'dog'], test_mode=True).metainfo['category_ids'] == (None, 2)
        with pytest.raises(ValueError, match='cta'):
            build(toy, vocabulary=['cta'], test_mode=True)

    def test_novel_word_may_be_absent_from_the_training_file(self, toy: Path) -> None:
        dataset = build(toy, vocabulary={'names': ['cat', 'yak'], 'novel': ['yak']})
        assert dataset.metainfo['novel_classes'] == ('yak',)

    def test_through_the_registry_with_a_pipeline(self, toy: Path) -> None:
        dataset = DATASETS.build(
            {
                'type': 'ovd.OpenVocabularyDataset',
                'ann_file': toy.name,
                'data_root': str(toy.parent),
                'data_prefix': {'img': 'images/'},
                'pipeline': [TRANSFORMS.build({'type': 'ovd.LoadImage'})],
            }
        )
        assert dataset[0]['img'].shape == (48, 64, 3)


class TestInTheHost:
    """Data sets inside mmengine's and mmdet's machinery."""

    PIPELINE = [
        {'type': 'ovd.LoadImage'},
        {'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_mask': True},
        {'type': 'mmdet.Resize', 'scale': (128, 96)},
        {'type': 'mmdet.RandomFlip', 'prob': 1.0},
        {'type': 'mmdet.PackDetInputs'},
    ]

    def test_training_pipeline_with_workers(self, toy: Path) -> None:
        code = mask_utils.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
        edit(
            toy,
            lambda content: content['annotations'][1].update(
                segmentation={'size': [48, 64], 'counts': code['counts'].decode()}
            ),
        )
        dataset = build(toy, pipeline=self.PIPELINE, filter_cfg={'filter_empty_gt': True})
        loader: DataLoader = DataLoader(dataset, batch_size=2, collate_fn=pseudo_collate, num_workers=1)
        batch = next(iter(loader))
        instances = batch['data_samples'][0].gt_instances
        assert batch['inputs'][0].shape == (3, 96, 128)
        assert instances.labels.tolist() == [1, 0]
        assert instances.bboxes.tensor[0].tolist() == [128 - 48, 12, 128 - 8, 32]
        assert instances.masks.masks.shape == (2, 96, 128)
        assert instances.masks.masks[1].any()

    def test_broken_image_ends_training_and_is_named(self, toy: Path) -> None:
        (toy.parent / 'images' / '000001.png').write_bytes(b'')
        dataset = build(toy, pipeline=self.PIPELINE)
        assert dataset[0] is not None
        with pytest.raises(ValueError, match=r'000001\.png'):
            dataset[1]

    def test_joined_data_sets_and_repeat_factors(self, toy: Path) -> None:
        parts = [build(toy), build(toy, test_mode=True, filter_cfg={'filter_empty_gt': True})]
        joined = ConcatDataset(parts, ignore_keys=['ann_file', 'category_ids'])
        assert len(joined) == 5
        assert joined.metainfo['classes'] == ('dog', 'cat', 'owl')
        assert len(ClassBalancedDataset(parts[1], oversample_thr=0.9)) >= 2


class TestSplit:
    NOVEL_OWL = {'names': ['cat', 'dog', 'owl'], 'novel': ['owl']}

    def test_leakage_is_refused(self, toy: Path) -> None:
        with pytest.raises(ValueError, match=r"'owl' \(annotation 3.*2\)"):
            build(toy, vocabulary=self.NOVEL_OWL)

    def test_novel_boxes_dropped_or_kept(self, toy: Path) -> None:
        assert labels_of(build(toy, vocabulary=self.NOVEL_OWL, novel_boxes='drop')) == [[0, 1], [], []]
        assert labels_of(build(toy, vocabulary=self.NOVEL_OWL, novel_boxes='keep')) == [[0, 1], [2], []]
        assert labels_of(build(toy, vocabulary=self.NOVEL_OWL, test_mode=True)) == [[0, 1], [2], []]

    def test_images_without_base_boxes_are_filtered_on_request(self, toy: Path) -> None:
        options = {'vocabulary': self.NOVEL_OWL, 'novel_boxes': 'drop'}
        assert len(build(toy, **options)) == 3
        dataset = build(toy, **options, filter_cfg={'filter_empty_gt': True})
        assert [info['img_id'] for info in dataset] == [1]
        assert len(build(toy, filter_cfg={'filter_empty_gt': True}, test_mode=True)) == 2
        with pytest.raises(ValueError, match=r"3.*\{'min_size'.*49\}"):
            build(toy, filter_cfg={'min_size': 49})

    def test_names_of_neither_half_stay_in_the_vocabulary_without_boxes(self, toy: Path) -> None:
        dataset = build(toy, split={'base': ['cat'], 'novel': ['owl']}, novel_boxes='drop')
        assert dataset.metainfo['classes'] == ('dog', 'cat', 'owl')
        assert dataset.metainfo['base_classes'] == ('cat',)
        assert dataset.metainfo['novel_classes'] == ('owl',)
        assert labels_of(dataset) == [[1], [], []]

    def test_split_none_makes_every_class_base(self, toy: Path) -> None:
        dataset = build(toy, vocabulary=self.NOVEL_OWL, split='none')
        assert labels_of(dataset) == [[0, 1], [2], []]
        assert dataset.metainfo['split'] == 'none'

    @pytest.mark.parametrize(
        ('split', 'message'),
        [
            ('coco_4817', r"'coco48_17'.*'coco_4817'"),
            ('frequency', 'frequency'),
            ('coco48_17', 'person'),
            ({'base': ['cat'], 'novel': ['cat']}, 'cat'),
            ({'base': ['cat']}, 'novel'),
        ],
    )
    def test_wrong_split(self, toy: Path, split: Any, message: str) -> None:
        with pytest.raises((ValueError, KeyError), match=message):
            build(toy, split=split)

    def test_lvis_rare_categories_are_novel(self, toy: Path) -> None:
        def to_lvis(content: dict[str, Any]) -> None:
            for category, frequency in zip(content['categories'], 'frc'):
                category['frequency'] = frequency
            for image in content['images']:
                image['coco_url'] = 'http://images.cocodataset.org/images/' + image.pop('file_name')

        edit(toy, to_lvis)
        dataset = OpenVocabularyDataset(
            ann_file=str(toy),
            data_prefix={'img': str(toy.parent)},
            vocabulary=['cat', 'dog', 'owl'],
            novel_boxes='drop',
        )
        assert dataset.metainfo['novel_classes'] == ('dog',)
        assert dataset.metainfo['split'] == 'frequency'
        assert dataset[0]['img_path'] == str(toy.parent / 'images' / '000000.png')
        assert labels_of(dataset) == [[0], [2], []]

    def test_the_path_of_an_image_can_be_read_from_its_address(self, toy: Path) -> None:
        def add_addresses(content: dict[str, Any]) -> None:
            for image in content['images']:
                image['coco_url'] = 'http://images.cocodataset.org/images/' + image['file_name']
                image['file_name'] = 'elsewhere.png'

        edit(toy, add_addresses)
        options = {'ann_file': str(toy), 'data_prefix': {'img': str(toy.parent)}, 'test_mode': True}
        dataset = OpenVocabularyDataset(**options, path_key='coco_url')
        assert dataset[0]['img_path'] == str(toy.parent / 'images' / '000000.png')
        with pytest.raises(FileNotFoundError, match=r'elsewhere\.png'):
            OpenVocabularyDataset(**options)
        with pytest.raises(ValueError, match=r"path_key.*'url'"):
            OpenVocabularyDataset(**options, path_key='url')
        edit(toy, lambda content: content['images'][0].pop('coco_url'))
        with pytest.raises(ValueError, match=r'1.*coco_url'):
            OpenVocabularyDataset(**options, path_key='coco_url')

    def test_coco_split_agrees_with_the_built_in_vocabulary(self, tmp_path: Path) -> None:
        coco, coco_ov = Vocabulary.parse('coco'), Vocabulary.parse('coco_ov')
        path = write_coco(tmp_path, list(coco), [[]])
        slots65 = build(path, vocabulary='coco_ov').metainfo
        slots80 = build(path, vocabulary='coco', split='coco48_17').metainfo
        assert (len(slots65['base_classes']), len(slots65['novel_classes'])) == (48, 17)
        assert len(slots80['classes']) == 80
        assert slots80['base_classes'] == slots65['base_classes'] == coco_ov.base_names
        assert slots80['novel_classes'] == slots65['novel_classes'] == coco_ov.novel_names
        trained = build(path, vocabulary='coco_ov80', split='coco48_17').metainfo
        assert trained['base_classes'] == coco_ov.base_names
        assert trained['novel_classes'] == coco_ov.novel_names


class TestBadAnnotations:
    @pytest.mark.parametrize(
        ('box', 'problem'),
        [
            ([4, 6, 0, 10], 'has no area'),
            ([4, 6, 5, -1], 'has no area'),
            ([64, 6, 5, 5], 'lies outside the image of 64 x 48 pixels'),
            ([-9, 6, 5, 5], 'lies outside'),
            ([4, 6, 5], 'is not four finite numbers'),
            ([4, 6, 5, float('nan')], 'is not four finite numbers'),
        ],
    )
    def test_degenerate_box(self, toy: Path, box: list[float], problem: str) -> None:
        edit(toy, lambda content: content['annotations'][1].update(bbox=box))
        with pytest.raises(ValueError, match=rf'2.*1.*{problem}'):
            build(toy)
        assert labels_of(build(toy, degenerate_boxes='drop')) == [[1], [2], []]

    def test_boxes_under_a_pixel_are_left_out(self, toy: Path) -> None:
        edit(toy, lambda content: content['annotations'][1].update(bbox=[4, 6, 0.5, 9]))
        assert labels_of(build(toy)) == [[1], [2], []]

    def test_unknown_category(self, toy: Path) -> None:
        edit(toy, lambda content: content['annotations'][1].update(category_id=77))
        with pytest.raises(ValueError, match=r'2.*77'):
            build(toy)

    def test_annotation_of_an_unlisted_image(self, toy: Path) -> None:
        edit(toy, lambda content: content['annotations'][1].update(image_id=77))
        with pytest.raises(ValueError, match=r'2.*77'):
            build(toy)

    def test_missing_image(self, toy: Path) -> None:
        (toy.parent / 'images' / '000001.png').unlink()
        with pytest.raises(FileNotFoundError, match=r'2 \(.*000001\.png\).*1.*3'):
            build(toy)
        assert [info['img_id'] for info in build(toy, missing_images='drop')] == [1, 3]
        assert len(build(toy, missing_images='unchecked')) == 3

    def test_missing_image_folder(self, toy: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'3.*3'):
            OpenVocabularyDataset(ann_file=str(toy), data_prefix={'img': str(toy.parent / 'nowhere')})

    @pytest.mark.parametrize(('kind', 'repeated'), [('images', 1), ('annotations', 1), ('categories', 5)])
    def test_repeated_id(self, toy: Path, kind: str, repeated: int) -> None:
        edit(toy, lambda content: content[kind].append(dict(content[kind][0], name='new')))
        with pytest.raises(ValueError, match=rf'{repeated}.*{kind}'):
            build(toy)

    @pytest.mark.parametrize(('kind', 'key'), [('images', 'height'), ('annotations', 'image_id')])
    def test_absent_field(self, toy: Path, kind: str, key: str) -> None:
        edit(toy, lambda content: content[kind][1].pop(key))
        with pytest.raises(ValueError, match=rf"{kind}.1.*'{key}'"):
            build(toy)

    def test_id_that_is_no_number(self, toy: Path) -> None:
        edit(toy, lambda content: content['images'][1].update(id='a'))
        with pytest.raises(ValueError, match="'a'"):
            build(toy)

    def test_repeated_category_name(self, toy: Path) -> None:
        edit(toy, lambda content: content['categories'].append({'id': 100, 'name': 'cat'}))
        with pytest.raises(ValueError, match="'cat'"):
            build(toy)

    def test_file_that_is_missing_or_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.json'
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            build(path)
        for content, message in (
            ('{', 'JSON'),
            ('[]', 'images'),
            ('{"images": []}', 'categories'),
        ):
            path.write_text(content)
            with pytest.raises(ValueError, match=message):
                build(path)

    @pytest.mark.parametrize('option', ['novel_boxes', 'degenerate_boxes', 'missing_images'])
    def test_unknown_option(self, toy: Path, option: str) -> None:
        with pytest.raises(ValueError, match=rf"{option}.*'maybe'"):
            build(toy, **{option: 'maybe'})


class TestMatching:
    def match(self, vocabulary: Any, names: list[str]) -> dict[str, str]:
        words = Vocabulary.parse(vocabulary)
        found = match_categories(words, [{'id': index, 'name': name} for index, name in enumerate(names)])
        return {names[category]: words.names[label] for category, label in found.items()}

    def test_case_and_separators_do_not_matter(self) -> None:
        assert self.match(['dining table', 'TV'], ['diningtable', 'tv']) == {
            'diningtable': 'dining table',
            'tv': 'TV',
        }

    def test_exact_names_come_first_and_ambiguous_ones_match_nothing(self) -> None:
        assert self.match(['hot dog', 'hotdog'], ['hotdog', 'Hot_Dog']) == {
            'hotdog': 'hotdog',
            'Hot_Dog': 'hot dog',
        }
        assert self.match(['hot dog', 'hot-dog'], ['hotdog']) == {}

    def test_synonyms_serve_what_is_left(self) -> None:
        vocabulary = [['sofa', 'couch'], ['cup', 'mug']]
        assert self.match(vocabulary, ['couch', 'cup', 'mug']) == {'couch': 'sofa', 'cup': 'cup'}

    def test_misspelt_objects365_names(self) -> None:
        objects365 = pytest.importorskip('mmdet.datasets.objects365').Objects365V2Dataset.METAINFO['classes']
        found = self.match('objects365', list(objects365))
        assert len(found) == 365
        assert found['Bakset'].lower() == 'basket'
        assert found['Formula 1 '].strip().lower() == 'formula 1'

    def test_voc_lvis_and_coco_names_of_the_hosts(self) -> None:
        datasets = pytest.importorskip('mmdet.datasets')
        for vocabulary, dataset in (
            ('voc', 'VOCDataset'),
            ('lvis', 'LVISV1Dataset'),
            ('coco', 'CocoDataset'),
        ):
            names = getattr(datasets, dataset).METAINFO['classes']
            assert len(self.match(vocabulary, list(names))) == len(names) == len(Vocabulary.parse(vocabulary))


VOC_XML = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>24</xmax><ymax>16</ymax></bndbox></object></annotation>"""


def write_voc(root: Path, objects: list[tuple[str, int]]) -> Path:
    """A VOC year folder with one object per image; returns the image set."""
    folder = root / 'VOC2007'
    write_coco(folder, ['x'], [[] for _ in objects])
    (folder / 'images').rename(folder / 'JPEGImages')
    (folder / 'Annotations').mkdir()
    for index, (name, difficult) in enumerate(objects):
        (folder / 'JPEGImages' / f'{index:06d}.png').rename(folder / 'JPEGImages' / f'{index:06d}.jpg')
        (folder / 'Annotations' / f'{index:06d}.xml').write_text(
            VOC_XML.format(name=name, difficult=difficult)
        )
    (folder / 'ImageSets' / 'Main').mkdir(parents=True)
    image_set = folder / 'ImageSets' / 'Main' / 'test.txt'
    image_set.write_text(''.join(f'{index:06d}\n' for index in range(len(objects))))
    return image_set


class TestVOC:
    def test_boxes_sizes_and_difficult_objects(self, tmp_path: Path) -> None:
        image_set = write_voc(tmp_path, [('diningtable', 0), ('tvmonitor', 1)])
        dataset = OpenVocabularyDataset(
            ann_file='VOC2007/ImageSets/Main/test.txt',
            data_root=str(tmp_path),
            data_prefix={'img': 'VOC2007/JPEGImages'},
            vocabulary='voc',
            test_mode=True,
        )
        table, monitor = dataset[0]['instances'][0], dataset[1]['instances'][0]
        assert table == {'bbox': [4, 6, 24, 16], 'bbox_label': 10, 'ignore_flag': 0}
        assert (monitor['bbox_label'], monitor['ignore_flag']) == (19, 1)
        assert (dataset[0]['height'], dataset[0]['width']) == (48, 64)
        assert None not in dataset.metainfo['category_ids']
        assert read_annotations(image_set)['annotations'][1]['difficult'] == 1

    def test_own_class_names(self, tmp_path: Path) -> None:
        categories = read_annotations(write_voc(tmp_path, [('yak', 0), ('emu', 0)]))['categories']
        assert categories == [{'id': 1, 'name': 'emu'}, {'id': 2, 'name': 'yak'}]

    def test_missing_or_broken_xml(self, tmp_path: Path) -> None:
        image_set = write_voc(tmp_path, [('cat', 0)])
        xml = tmp_path / 'VOC2007' / 'Annotations' / '000000.xml'
        for content, problem in (('<annotation', 'unclosed token'), ('<a/>', 'size/height')):
            xml.write_text(content)
            with pytest.raises(ValueError, match=rf'000000\.xml.*{problem}'):
                read_annotations(image_set)
        xml.unlink()
        with pytest.raises(FileNotFoundError, match=r'000000\.xml'):
            read_annotations(image_set)


def test_real_coco_photographs_in_the_48_17_split() -> None:
    root = shared_path('data/coco_mini')
    options: dict[str, Any] = {
        'data_root': str(root),
        'ann_file': 'annotations/instances_train2017.json',
        'data_prefix': {'img': 'train2017'},
        'vocabulary': 'coco_ov',
        'filter_cfg': {'filter_empty_gt': True},
    }
    with pytest.raises(ValueError, match='leakage'):
        OpenVocabularyDataset(**options)
    dataset = OpenVocabularyDataset(**options, novel_boxes='drop')
    content = json.loads((root / 'annotations/instances_train2017.json').read_text())
    base = set(dataset.metainfo['base_classes'])
    ids = {category['id'] for category in content['categories'] if category['name'] in base}
    expected = {item['image_id'] for item in content['annotations'] if item['category_id'] in ids}
    assert len(ids) == 48
    assert {info['img_id'] for info in dataset} == expected
    assert all(
        not Vocabulary.parse('coco_ov').is_novel[label] for labels in labels_of(dataset) for label in labels
    )
    kept = OpenVocabularyDataset(**options, novel_boxes='keep')
    slots80 = OpenVocabularyDataset(**options | {'vocabulary': 'coco'}, split='coco48_17', novel_boxes='keep')
    names65, names80 = kept.metainfo['classes'], slots80.metainfo['classes']
    assert [[names65[i] for i in labels] for labels in labels_of(kept)] == [
        [names80[i] for i in labels] for labels in labels_of(slots80)
    ]
