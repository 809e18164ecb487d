"""Few-shot segmentation: folds, lists, episodes, labels of an episode, and HSNet's metric."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import FUNCTIONS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision import transforms

from ovd.datasets.segmentation.few_shot import SquareResize, flatten_episodes, nearest_indices
from ovd.datasets.segmentation.few_shot_benchmarks import COCO20iDataset, FSS1000Dataset, Pascal5iDataset
from ovd.evaluation.few_shot import FewShotMetric
from ovd.registry import DATASETS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import shared_path, write_coco, write_image

META_KEYS = ('img_path', 'ori_shape', 'img_shape', 'class_id')
PACK = {'type': 'PackSegInputs', 'meta_keys': META_KEYS}
PLAIN = [{'type': 'ovd.LoadImage'}, {'type': 'ovd.LoadSegmentation'}, PACK]
SQUARE = [*PLAIN[:2], {'type': 'ovd.SquareResize', 'size': 32}, PACK]


@pytest.fixture(autouse=True)
def host() -> None:
    init_default_scope('mmseg')


# Raw ids of pictures a .. f: 1 aeroplane, 2 bicycle, 6 bus, 11 dining table; 255 border; columns of 4 x 6.
COLUMNS = {
    'a': [0, 1, 1, 255, 6, 6],
    'b': [0, 0, 1, 255, 2, 2],
    'c': [6, 6, 6, 255, 0, 0],
    'd': [11, 11, 255, 6, 6, 1],
    'e': [11, 11, 11, 0, 0, 0],
    'f': [0, 0, 0, 0, 0, 0],
}
AEROPLANE, BICYCLE, BUS, TABLE = 0, 1, 5, 10


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for stem, columns in COLUMNS.items():
        write_image(tmp_path / 'JPEGImages' / f'{stem}.jpg', 4, 6)
        (tmp_path / 'maps').mkdir(exist_ok=True)
        Image.fromarray(np.array([columns] * 4, np.uint8)).save(tmp_path / 'maps' / f'{stem}.png')
    write_image(tmp_path / 'JPEGImages' / 'no_map.jpg', 4, 6)
    return tmp_path


def pascal(root: Path, **options: Any) -> Pascal5iDataset:
    options = {'pipeline': PLAIN, 'serialize_data': False, **options}
    prefix = {'img_path': 'JPEGImages', 'seg_map_path': 'maps'}
    return Pascal5iDataset(data_root=str(root), data_prefix=prefix, **options)


def pairs_of(dataset: Any) -> list[tuple[str, int]]:
    return [(Path(dataset.get_data_info(image)['img_path']).stem, label) for image, label in dataset.episodes]


class TestPascal:
    def test_test_episodes_are_the_pairs_of_the_fold_repeated(self, voc: Path) -> None:
        dataset = pascal(voc, fold=0, test_mode=True, num_episodes=6)
        fold = [('a', AEROPLANE), ('b', AEROPLANE), ('d', AEROPLANE), ('b', BICYCLE)]
        assert pairs_of(dataset) == [*fold, *fold[:2]]
        assert len(dataset) == 6
        assert len(pascal(voc, fold=0, test_mode=True)) == 1000
        assert pairs_of(pascal(voc, fold=0, test_mode=True, num_episodes=None)) == fold

    def test_folds_are_neighbours(self, voc: Path) -> None:
        names = Vocabulary.parse('fewshot_pascal').names
        for fold in (0, 1, 2):
            dataset = pascal(voc, fold=fold, test_mode=True)
            assert dataset.metainfo['unseen_classes'] == names[5 * fold : 5 * fold + 5]
            assert dataset.metainfo['episode_classes'] == names[5 * fold : 5 * fold + 5]
            assert dataset.metainfo['classes'] == names
            assert dataset.metainfo['fold'] == fold
        with pytest.raises(ValueError, match='fold 3'):
            pascal(voc, fold=3, test_mode=True)
        with pytest.raises(ValueError, match=r'fold.*4'):
            pascal(voc, fold=4)

    def test_labels_of_a_test_episode(self, voc: Path) -> None:
        sample = pascal(voc, fold=1, test_mode=True)[0]['data_samples']
        assert sample.class_id == BUS
        assert sample.gt_sem_seg.data.tolist() == [[[0, 0, 0, -1, 1, 1]] * 4]
        others = pascal(voc, fold=1, test_mode=True, border='others')[0]['data_samples']
        assert others.gt_sem_seg.data.tolist() == [[[0, 0, 0, 0, 1, 1]] * 4]

    def test_training_brings_a_query_and_a_support_of_the_same_class(self, voc: Path) -> None:
        dataset = pascal(voc, fold=0)
        assert pairs_of(dataset) == [*[(stem, BUS) for stem in 'acd'], ('d', TABLE), ('e', TABLE)]
        supports = set()
        for _ in range(30):
            query, support = dataset[0]['data_samples']
            assert (query.class_id, support.class_id) == (BUS, BUS)
            assert Path(query.img_path).stem == 'a'
            supports.add(Path(support.img_path).stem)
        assert supports == {'c', 'd'}
        labels = dataset[3]['data_samples'][0].gt_sem_seg.data  # d, dining table; the border is trained
        assert labels.tolist() == [[[1, 1, 0, 0, 0, 0]] * 4]
        assert dataset.metainfo['episode_classes'] == Vocabulary.parse('fewshot_pascal').names[5:]

    def test_training_may_leave_out_borders_and_classes_of_the_fold(self, voc: Path) -> None:
        options = {'fold': 0, 'supports': 0}
        labels = pascal(voc, border='ignore', **options)[2]['data_samples'][0].gt_sem_seg.data
        assert labels.tolist() == [[[0, 0, -1, 1, 1, 0]] * 4]
        labels = pascal(voc, unseen_policy='drop', **options)[2]['data_samples'][0].gt_sem_seg.data
        assert labels.tolist() == [[[0, 0, 0, 1, 1, -1]] * 4]

    def test_no_training_episode_asks_for_a_class_of_the_fold(self, voc: Path) -> None:
        for fold, held_out in ((0, {AEROPLANE, BICYCLE}), (1, {BUS}), (2, {TABLE})):
            dataset = pascal(voc, fold=fold, supports=0)
            assert not {label for _, label in pairs_of(dataset)} & held_out

    def test_more_supports_than_images_are_refused(self, voc: Path) -> None:
        with pytest.raises(ValueError, match=r"'diningtable' has 2 .* 3$"):
            pascal(voc, fold=0, supports=2)
        with pytest.raises(ValueError, match=r"'bicycle' has 1 .* 2$"):
            pascal(voc, fold=1)

    def test_small_regions_may_be_passed_over(self, voc: Path) -> None:
        dataset = pascal(voc, fold=0, test_mode=True, num_episodes=None, min_pixels=5)
        assert pairs_of(dataset) == [('a', AEROPLANE), ('b', BICYCLE)]

    def test_a_list_of_images(self, voc: Path) -> None:
        (voc / 'val.txt').write_text('d\nb\n')
        dataset = pascal(voc, ann_file='val.txt', fold=0, test_mode=True, num_episodes=None)
        assert pairs_of(dataset) == [('d', AEROPLANE), ('b', AEROPLANE), ('b', BICYCLE)]
        (voc / 'val.txt').write_text('no_map\n')
        with pytest.raises(FileNotFoundError, match=r'no_map\.png'):
            pascal(voc, ann_file='val.txt', fold=0, test_mode=True)

    def test_published_lists(self, voc: Path) -> None:
        for part, fold, lines in (
            ('val', 0, ['d__01', 'b__02']),
            ('trn', 1, ['c__06', 'a__06']),
            ('trn', 2, ['e__11', 'd__11']),
            ('trn', 3, []),
            ('val', 3, ['e__11']),
            ('val', 1, ['zzz__06']),
            ('val', 2, ['e_11']),
        ):
            file = voc / 'splits' / part / f'fold{fold}.txt'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(''.join(line + '\n' for line in lines))
        options = {'lists': str(voc / 'splits')}
        tested = pascal(voc, fold=0, test_mode=True, num_episodes=3, **options)
        assert pairs_of(tested) == [('d', AEROPLANE), ('b', BICYCLE), ('d', AEROPLANE)]
        assert pairs_of(pascal(voc, fold=0, **options)) == [
            *[('c', BUS), ('a', BUS), ('e', TABLE), ('d', TABLE)]
        ]
        with pytest.raises(ValueError, match=r'fold3\.txt.*class 11 '):
            pascal(voc, fold=3, test_mode=True, **options)
        with pytest.raises(ValueError, match=r"fold1\.txt.*'zzz'"):
            pascal(voc, fold=1, test_mode=True, **options)
        with pytest.raises(ValueError, match=r"fold2\.txt, line 1.*'e_11'"):
            pascal(voc, fold=2, test_mode=True, **options)
        with pytest.raises(FileNotFoundError, match=r'fold0\.txt'):
            pascal(voc, fold=2, **options)

    def test_better_spelling_of_the_words(self, voc: Path) -> None:
        dataset = pascal(voc, fold=2, test_mode=True, vocabulary='voc', num_episodes=None)
        assert pairs_of(dataset) == [('d', TABLE), ('e', TABLE)]
        assert 'dining table' in dataset.metainfo['unseen_classes']

    def test_words_in_another_order_are_refused(self, voc: Path) -> None:
        """Folds and lists are numbers: under other words they would ask for another class than they mean."""
        first, second, *others = Vocabulary.parse('fewshot_pascal').names
        for test_mode in (False, True):
            with pytest.raises(ValueError, match=f'{first!r}.*{second!r}'):
                pascal(voc, fold=2, supports=0, test_mode=test_mode, vocabulary=[second, first, *others])

    def test_lists_need_all_classes(self, voc: Path) -> None:
        some = Vocabulary.parse('fewshot_pascal').names[:8]
        with pytest.raises(ValueError, match=r"'chair', 'cow', .*\(12 in all\)"):
            pascal(voc, fold=0, test_mode=True, vocabulary=some, lists=str(voc / 'splits'))

    def test_a_loader_flattens_episodes(self, voc: Path) -> None:
        dataset = pascal(voc, fold=0, pipeline=SQUARE)
        collate = FUNCTIONS.get('ovd.flatten_episodes')
        assert collate is flatten_episodes
        batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate)))
        assert [image.shape for image in batch['inputs']] == [(3, 32, 32)] * 6
        labels = [sample.class_id for sample in batch['data_samples']]
        assert labels == [BUS] * 6
        assert [Path(s.img_path).stem for s in batch['data_samples']][::2] == ['a', 'c', 'd']

    def test_options_without_meaning_are_refused(self, voc: Path) -> None:
        for name, value in (('indices', 2), ('background', 'ignore')):
            with pytest.raises(ValueError, match=name):
                pascal(voc, **{name: value})
        with pytest.raises(ValueError, match='border'):
            pascal(voc, border='0')


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Eight images; image i shows the 20 classes i % 4, i % 4 + 4, ..., each as one cell of 6 x 8 pixels."""
    names = list(Vocabulary.parse('coco').names)
    cells = [[8.0 * (i % 6), 6.0 * (i // 6), 8.0, 6.0] for i in range(20)]
    boxes = [[(label, cell) for label, cell in zip(range(i % 4, 80, 4), cells)] for i in range(8)]
    return write_coco(tmp_path, names, boxes, category_ids=list(range(1, 160, 2)))


def coco20i(file: Path, **options: Any) -> COCO20iDataset:
    options = {'pipeline': PLAIN, 'serialize_data': False, **options}
    return COCO20iDataset(
        ann_file=str(file), data_prefix={'img_path': str(file.parent / 'images')}, **options
    )


class TestCoco:
    def test_every_fourth_class_is_in_a_fold(self, coco: Path) -> None:
        names = Vocabulary.parse('fewshot_coco').names
        dataset = coco20i(coco, fold=2, test_mode=True)
        assert dataset.metainfo['episode_classes'] == names[2::4]
        assert len(dataset) == 1000
        labels = {label for _, label in pairs_of(dataset)}
        assert labels == set(range(2, 80, 4))

    def test_hsnet_draws_are_those_of_the_global_generator_seeded_with_0(self, coco: Path) -> None:
        dataset = coco20i(coco, fold=1, test_mode=True, num_episodes=200)
        classwise = {label: ['000001', '000005'] for label in range(1, 80, 4)}
        state = np.random.get_state()  # noqa: NPY002
        np.random.seed(0)  # noqa: NPY002
        expected = []
        for _ in range(200):
            label = np.random.choice(list(classwise), 1, replace=False)[0]  # noqa: NPY002
            expected.append((np.random.choice(classwise[label], 1, replace=False)[0], label))  # noqa: NPY002
        np.random.set_state(state)  # noqa: NPY002
        assert pairs_of(dataset) == expected

    def test_draws_leave_the_global_generator_alone_and_own_ones_follow_the_seed(self, coco: Path) -> None:
        np.random.seed(5)  # noqa: NPY002
        expected = np.random.random()  # noqa: NPY002
        np.random.seed(5)  # noqa: NPY002
        one = coco20i(coco, test_mode=True, draws='generator', seed=1, num_episodes=50)
        assert np.random.random() == expected  # noqa: NPY002
        same = coco20i(coco, test_mode=True, draws='generator', seed=1, num_episodes=50)
        other = coco20i(coco, test_mode=True, draws='generator', seed=2, num_episodes=50)
        assert pairs_of(one) == pairs_of(same) != pairs_of(other)

    def test_labels_of_an_episode(self, coco: Path) -> None:
        sample = coco20i(coco, fold=3, test_mode=True)[0]['data_samples']
        labels = sample.gt_sem_seg.data[0]
        place = (sample.class_id - 3) // 4
        expected = torch.zeros(48, 64, dtype=torch.long)
        expected[6 * (place // 6) : 6 * (place // 6) + 6, 8 * (place % 6) : 8 * (place % 6) + 8] = 1
        assert torch.equal(labels, expected)

    def test_training_draws_the_class_first(self, coco: Path) -> None:
        dataset = coco20i(coco, fold=0, supports=1)
        assert len(dataset) == 6 * 20
        np.random.seed(0)  # noqa: NPY002
        seen = []
        for _ in range(150):
            query, support = dataset[7]['data_samples']
            assert query.class_id == support.class_id
            assert query.img_path != support.img_path
            assert query.gt_sem_seg.data.sum() == support.gt_sem_seg.data.sum() == 48
            seen.append(query.class_id)
        assert {label % 4 for label in seen} == {1, 2, 3}
        assert len(set(seen)) > 40
        np.random.seed(0)  # noqa: NPY002
        assert [dataset[7]['data_samples'][0].class_id for _ in range(9)] == seen[:9]

    def test_names_of_both_spellings(self, coco: Path) -> None:
        few = coco20i(coco, fold=0, test_mode=True)
        plain = coco20i(coco, fold=0, test_mode=True, vocabulary='coco')
        assert (few.episodes == plain.episodes).all()
        assert few.metainfo['classes'][3:5] == ('motorbike', 'aeroplane')
        assert plain.metainfo['classes'][3:5] == ('motorcycle', 'airplane')

    def test_lists(self, coco: Path) -> None:
        folder = coco.parent / 'splits' / 'val'
        folder.mkdir(parents=True)
        listed = {'0': ['val2014/000004.jpg', '000000.jpg'], '4': ['000000.png'], '1': ['000001.jpg']}
        (folder / 'fold0.json').write_text(json.dumps(listed))
        options = {'lists': str(coco.parent / 'splits'), 'test_mode': True, 'num_episodes': 40}
        dataset = coco20i(coco, fold=0, **options)
        assert set(pairs_of(dataset)) == {('000004', 0), ('000000', 0), ('000000', 4)}
        (folder / 'fold1.pkl').write_bytes(b'cos\nsystem\n')
        with pytest.raises(FileNotFoundError, match=r'fold1\.json.*pickle'):
            coco20i(coco, fold=1, **options)
        (folder / 'fold1.json').write_text('[1]')
        with pytest.raises(ValueError, match=r'fold1\.json.*JSON'):
            coco20i(coco, fold=1, **options)
        (folder / 'fold1.json').write_text('{"1": ["x.jpg"]}')
        with pytest.raises(ValueError, match=r"fold1\.json.*'x\.jpg'"):
            coco20i(coco, fold=1, **options)

    def test_from_label_maps(self, coco: Path) -> None:
        root = coco.parent
        for i in range(8):
            raw = np.zeros((48, 64), np.uint8)
            raw[:3, :5] = i % 4 + 1
            (root / 'maps').mkdir(exist_ok=True)
            Image.fromarray(raw).save(root / 'maps' / f'{i:06d}.png')
        dataset = COCO20iDataset(
            fold=1,
            data_root=str(root),
            data_prefix={'img_path': 'images', 'seg_map_path': 'maps'},
            raw_classes='coco',
            raw_ids=1,
            background_ids=[0],
            img_suffix='.png',
            pipeline=PLAIN,
            test_mode=True,
        )
        assert set(pairs_of(dataset)) == {('000001', 1), ('000005', 1)}
        assert dataset[0]['data_samples'].gt_sem_seg.data.sum() == 15


@pytest.fixture
def fss(tmp_path: Path) -> Path:
    parts = {'trn': ['b_train', 'a_train'], 'val': ['m_val'], 'test': ['z_test', 'c_test']}
    for part, names in parts.items():
        (tmp_path / f'{part}.txt').write_text('\n'.join(names))
        for name in names:
            for number in (1, 2, 10):
                write_image(tmp_path / 'data' / name / f'{number}.jpg', 4, 4)
                grey = np.array([[0, 127, 128, 255]] * 4, np.uint8)
                Image.fromarray(grey).convert('RGB').save(tmp_path / 'data' / name / f'{number}.png')
    return tmp_path


def fss1000(root: Path, **options: Any) -> FSS1000Dataset:
    pipeline = [PLAIN[0], {'type': 'ovd.LoadSegmentation', 'to_grey': True}, PACK]
    options = {'pipeline': pipeline, 'serialize_data': False, **options}
    return FSS1000Dataset(data_root=str(root / 'data'), lists=str(root), **options)


class TestFss:
    def test_classes_are_sorted_within_their_part(self, fss: Path) -> None:
        dataset = fss1000(fss, test_mode=True)
        assert dataset.metainfo['classes'] == ('a_train', 'b_train', 'm_val', 'c_test', 'z_test')
        assert (
            dataset.metainfo['unseen_classes']
            == dataset.metainfo['episode_classes']
            == (*('c_test', 'z_test'),)
        )

    def test_a_test_is_every_image_of_the_test_classes(self, fss: Path) -> None:
        dataset = fss1000(fss, test_mode=True)
        samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
        assert [(Path(s.img_path).stem, s.class_id) for s in samples] == [
            (stem, label) for label in (3, 4) for stem in ('1', '2', '10')
        ]
        assert samples[0].gt_sem_seg.data.tolist() == [[[0, 0, 1, 1]] * 4]
        low = fss1000(fss, test_mode=True, threshold=127)[0]['data_samples']
        assert low.gt_sem_seg.data.tolist() == [[[0, 1, 1, 1]] * 4]

    def test_training_uses_the_first_part(self, fss: Path) -> None:
        dataset = fss1000(fss)
        assert len(dataset) == 6
        query, support = dataset[5]['data_samples']
        assert query.class_id == support.class_id == 1
        assert Path(query.img_path).parent.name == Path(support.img_path).parent.name == 'b_train'
        assert query.img_path != support.img_path

    def test_words_must_be_in_the_order_of_the_lists(self, fss: Path) -> None:
        (fss / 'classes.txt').write_text('a_train\nb_train\nc_test\nm_val\nz_test\n')  # sorted as a whole
        with pytest.raises(ValueError, match=r"'m_val'.*'c_test'"):
            fss1000(fss, test_mode=True, vocabulary=str(fss / 'classes.txt'))
        (fss / 'classes.txt').write_text('a_train\nb_train\nm_val\nc_test\nz_test\n')
        assert len(fss1000(fss, test_mode=True, vocabulary=str(fss / 'classes.txt'))) == 6

    def test_missing_parts(self, fss: Path) -> None:
        (fss / 'data' / 'c_test' / '2.png').unlink()
        with pytest.raises(FileNotFoundError, match=r'c_test/2\.png.*1 of 6'):
            fss1000(fss, test_mode=True)
        (fss / 'val.txt').unlink()
        with pytest.raises(FileNotFoundError, match=r'val\.txt'):
            fss1000(fss)

    def test_registered(self) -> None:
        for kind in (Pascal5iDataset, COCO20iDataset, FSS1000Dataset):
            assert DATASETS.get(f'ovd.{kind.__name__}') is kind


class TestSquare:
    @pytest.mark.parametrize('size', [480, 32])
    def test_nearest_indices_are_those_of_torch(self, size: int) -> None:
        for old in [*range(1, 60), 333, 375, 480, 500, 612, 640, 1023]:
            numbers = torch.arange(old, dtype=torch.float32)[None, None]
            expected = F.interpolate(numbers, size=size, mode='nearest')[0, 0]
            assert nearest_indices(old, size).tolist() == expected.tolist(), old

    def test_the_image_is_what_torchvision_makes_of_it(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
        step = SquareResize(size=32)
        results = {'img': image, 'img_shape': (50, 90), 'ori_shape': (50, 90)}
        found = step({**results, 'gt_seg_map': image[..., 0], 'seg_fields': ['gt_seg_map']})
        expected = transforms.Resize((32, 32))(Image.fromarray(image))
        assert (found['img'] == np.asarray(expected)).all()
        assert found['img_shape'] == found['ori_shape'] == (32, 32)
        asked = step(dict(results))  # nothing to be scored: the answer is wanted in the picture's frame
        assert (asked['img_shape'], asked['ori_shape']) == ((32, 32), (50, 90))

    def test_labels_and_frames(self) -> None:
        labels = np.array([[0, 1], [-1, 0]], np.int16)
        results = {
            'img': np.zeros((2, 2, 3), np.uint8),
            'ori_shape': (2, 2),
            'gt_seg_map': labels,
            'seg_fields': ['gt_seg_map'],
        }
        square = SquareResize(size=4)(dict(results))
        assert square['gt_seg_map'].tolist() == labels.repeat(2, 0).repeat(2, 1).tolist()
        assert square['gt_seg_map'].dtype == np.int16
        original = SquareResize(size=4, score_at='original')(dict(results))
        assert original['gt_seg_map'].tolist() == labels.tolist()
        assert (original['ori_shape'], original['img_shape']) == ((2, 2), (4, 4))
        with pytest.raises(ValueError, match='score_at'):
            SquareResize(score_at='paper')


def episode(predicted: Any, truth: Any, class_id: int | None) -> dict[str, Any]:
    sample = SegDataSample(metainfo={'img_path': 'a.jpg'})
    if class_id is not None:
        sample.set_metainfo({'class_id': class_id})
    sample.pred_sem_seg = PixelData(data=torch.as_tensor(predicted)[None])
    sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    return dict(sample.to_dict())


def metric_of(classes: Any, asked: Any, episodes: Any, **options: Any) -> tuple[dict[str, float], Any]:
    metric = FewShotMetric(**options)
    metric.dataset_meta = {'classes': classes, 'episode_classes': asked, 'fold': 1, 'ann_file': 'x'}
    for each in episodes:
        metric.process({}, [episode(*each)])
    return metric.evaluate(len(episodes)), metric


class TestMetric:
    def test_by_hand(self, tmp_path: Path) -> None:
        metrics, metric = metric_of(
            ('a', 'b', 'c', 'd'),
            ('b', 'c', 'd'),
            [
                ([[1, 1, 0, 0]], [[1, 0, 0, -1]], 1),  # class: 1 of 2, others: 1 of 2
                ([[0, 0, 0, 1]], [[1, 0, 0, 1]], 1),  # class: 1 of 2, others: 2 of 3
                ([[1, 1, 1, 1]], [[1, 1, 1, 0]], 2),  # class: 3 of 4, others: 0 of 1
            ],
            out_file=tmp_path / 'r.json',
            protocol={'seed': 0},
        )
        assert metrics == pytest.approx(
            {'few_shot/mIoU': (2 / 4 + 3 / 4 + 0) / 3, 'few_shot/FB_IoU': (5 / 8 + 3 / 6) / 2}
        )
        report = json.loads((tmp_path / 'r.json').read_text())
        assert report == metric.report
        assert report['metrics'] == metrics
        assert report['per_class'][0] == {'name': 'b', 'episodes': 2, 'IoU': 0.5, 'IoU_others': 0.6}
        assert report['protocol'] == {
            'annotations': 'x',
            'fold': 1,
            'episodes': 3,
            'classes': 3,
            'classes_without_episode': 1,
            'vocabulary_hash': None,
            'seed': 0,
        }

    def test_bad_samples(self) -> None:
        for label in (None, 0):
            with pytest.raises(ValueError, match=rf'a\.jpg.*{label}'):
                metric_of(('a', 'b'), ('b',), [([[1]], [[1]], label)])
        with pytest.raises(ValueError, match='2 to 2'):
            metric_of(('a', 'b'), ('b',), [([[2]], [[1]], 1)])
        with pytest.raises(ValueError, match=r'\(1, 1\).*\(1, 2\)'):
            metric_of(('a', 'b'), ('b',), [([[1]], [[1, 0]], 1)])
        with pytest.raises(ValueError, match='episode_classes'):
            FewShotMetric().dataset_meta = {'classes': ('a',)}

    def test_equals_the_recorded_one(self) -> None:
        golden = load_file(shared_path('goldens/lseg/fewshot_metric_a.safetensors'))
        truth = torch.where(golden['in/ignore'] == 1, -1, golden['in/gt'])
        classes = tuple(Vocabulary.parse('fewshot_pascal').names)
        metrics, metric = metric_of(
            classes,
            [classes[i] for i in golden['in/class_ids_of_fold']],
            list(zip(golden['in/pred'], truth, golden['in/class_id'].tolist())),
        )
        assert 100 * metrics['few_shot/mIoU'] == pytest.approx(float(golden['out/miou']), abs=1e-5)
        assert 100 * metrics['few_shot/FB_IoU'] == pytest.approx(float(golden['out/fb_iou']), abs=1e-5)
        iou = golden['out/intersection'] / golden['out/union'].clamp(min=1)
        for row in metric.report['per_class']:
            label = classes.index(row['name'])
            assert [row['IoU_others'], row['IoU']] == pytest.approx(iou[:, label].tolist(), abs=1e-6)
