"""The data sections of segmentation read the layouts of data/README.md, from tiny folders of that shape."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from ovd.config import CONFIG_ROOT, check_needs, load_config
from ovd.registry import DATASETS, METRICS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import write_coco, write_image
from tests.toys.lseg import losses_of, segmentor
from tests.toys.lseg import words as word_vectors

BASES = CONFIG_ROOT / '_base_' / 'datasets'
HEIGHT, WIDTH = 40, 60
VOC, CONTEXT, COCO = Path('data/VOCdevkit/VOC2012'), Path('data/VOCdevkit/VOC2010'), Path('data/coco')
ADE = Path('data/ade/ADEChallengeData2016')


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    init_default_scope('mmseg')


def pair(image: Path, labels: Path, ids: list[int], width: int = WIDTH) -> None:
    """An image, and a map with these ids in equal columns."""
    write_image(image, HEIGHT, width)
    labels.parent.mkdir(parents=True, exist_ok=True)
    columns = np.array(ids).repeat(width // len(ids))
    Image.fromarray(np.tile(columns, (HEIGHT, 1)).astype(np.uint8)).save(labels)


def lines(file: Path, *words: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(''.join(word + '\n' for word in words))


def write_ade() -> None:
    for part in ('training', 'validation'):
        pair(ADE / f'images/{part}/ADE_1.jpg', ADE / f'annotations/{part}/ADE_1.png', [0, 1, 150])


def write_voc() -> None:
    for stem, maps in (('2007_1', 'SegmentationClassAug'), ('2007_2', 'SegmentationClass')):
        pair(VOC / f'JPEGImages/{stem}.jpg', VOC / f'{maps}/{stem}.png', [0, 20, 255])
    lines(VOC / 'ImageSets/Segmentation/trainaug.txt', '2007_1')
    lines(VOC / 'ImageSets/Segmentation/val.txt', '2007_2')


def write_context() -> None:
    for part in ('train', 'val'):
        maps = CONTEXT / f'SegmentationClassContext/2008_{part}.png'
        pair(CONTEXT / f'JPEGImages/2008_{part}.jpg', maps, [0, 1, 59])
        lines(CONTEXT / f'ImageSets/SegmentationContext/{part}.txt', f'2008_{part}')


def write_stuff() -> None:
    for part in ('train2017', 'val2017'):
        pair(COCO / part / '0.jpg', COCO / 'stuffthingmaps' / part / '0.png', [0, 89, 91, 181, 255])


def write_instances() -> None:
    for part in ('train2017', 'val2017'):
        boxes = [[(0, [0, 0, 20, 40]), (79, [40, 0, 20, 40])]]
        names = list(Vocabulary.parse('coco').names)
        file = write_coco(Path('made') / part, names, boxes, (HEIGHT, WIDTH))
        (COCO / 'annotations').mkdir(parents=True, exist_ok=True)
        file.rename(COCO / f'annotations/instances_{part}.json')
        (file.parent / 'images').rename(COCO / part)


LAYOUTS = {
    # data: how to write it, vocabulary, its train loader's and its test loader's labels
    'ade': (write_ade, 'ade150', [-1, 0, 149]),
    'voc': (write_voc, 'voc', [-1, 19, 20]),
    'context': (write_context, 'context59', [0, 58, 59]),
    'coco_stuff': (write_stuff, 'cocostuff171', [-1, 0, 79, 80, 170]),
    'coco_object': (write_stuff, 'coco', [0, 79, 80]),
    'coco_object_instances': (write_instances, 'coco', [0, 79, 80]),
}


@pytest.mark.parametrize('base', sorted(LAYOUTS))
def test_label_maps(base: str) -> None:
    write, words, expected = LAYOUTS[base]
    config = load_config(BASES / 'segmentation.py', {'data': base})
    with pytest.raises(FileNotFoundError, match=r'see data/README\.md, section'):
        check_needs(config)
    write()
    check_needs(config)
    for section in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        is_training = section == 'train_dataloader'
        extra = {'extra_words_policy': 'keep'} if is_training else {}
        dataset = DATASETS.build({**config[section].dataset, 'vocabulary': words, **extra})
        sample = dataset[0]
        labels = sample['data_samples'].gt_sem_seg.data
        if is_training:
            assert sample['inputs'].shape == (3, 480, 480)
            assert labels.shape == (1, 480, 480)
            assert set(labels.unique().tolist()) <= {*expected, -1}
        else:
            assert labels.shape == (1, HEIGHT, WIDTH)
            assert labels.unique().tolist() == expected
            metric = METRICS.build(config.test_evaluator)
            metric.dataset_meta = dataset.metainfo
            result = {'pred_sem_seg': {'data': labels.clamp(min=0)}, 'gt_sem_seg': {'data': labels}}
            metric.process({}, [result])
            assert metric.evaluate(1)['seg/mIoU'] == 1


def test_unseen_classes_of_coco_stuff() -> None:
    """Ignored in training, asked for in testing, averaged by themselves."""
    write_stuff()
    words = Vocabulary.parse('cocostuff_unseen15')
    assert words.names == Vocabulary.parse('cocostuff171').names
    assert sum(words.is_novel) == 15
    cow, person = words.index('cow'), words.index('person')
    for part in ('train2017', 'val2017'):
        pair(COCO / part / '0.jpg', COCO / 'stuffthingmaps' / part / '0.png', [0, 20, 255])
    config = load_config('lseg_vitl16_coco_stuff_unseen')
    labels = []
    for section in ('train_dataloader', 'test_dataloader'):
        entry = config[section].dataset
        entry.pipeline = [step for step in entry.pipeline if 'Random' not in step.type and step.type != 'Pad']
        dataset = DATASETS.build(entry)
        labels.append(dataset[0]['data_samples'].gt_sem_seg.data)
    assert [label.unique().tolist() for label in labels] == [[-1, person], [-1, person, cow]]
    metric = METRICS.build(config.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    predicted = labels[1].clamp(min=0)
    metric.process({}, [{'pred_sem_seg': {'data': predicted}, 'gt_sem_seg': {'data': labels[1]}}])
    metrics = metric.evaluate(1)
    assert [metrics[f'seg/{key}'] for key in ('mIoU_seen', 'mIoU_unseen', 'hIoU')] == [1, 1, 1]


def test_groupvit_words_read_the_same_maps() -> None:
    for base, words in (('voc', 'voc_groupvit'), ('context', 'context59_groupvit')):
        write, _, expected = LAYOUTS[base]
        write()
        config = load_config(BASES / 'segmentation.py', {'data': base})
        dataset = DATASETS.build({**config.test_dataloader.dataset, 'vocabulary': words})
        assert dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist() == expected
        names = Vocabulary.parse(words[: -len('_groupvit')]).names
        assert dataset.metainfo['classes'] == names  # the data set's, not what is prompted
    asked = {Vocabulary.parse(words).names[label] for words, label in (('voc_groupvit', 10),)}
    assert asked == {'table'}


def write_fss() -> None:
    for part, name in (('trn', 'apple'), ('val', 'key'), ('test', 'zebra')):
        for number in ('1', '2'):
            folder = Path('data/fss1000') / name
            pair(folder / f'{number}.jpg', folder / f'{number}.png', [0, 127, 128, 255])
        lines(Path('data/fss1000_splits') / f'{part}.txt', name)


def write_coco2014() -> None:
    for part in ('train2014', 'val2014'):
        boxes = [[(0, [0, 0, 20, 40]), (1, [40, 0, 20, 40]), (2, [20, 0, 20, 40]), (3, [20, 0, 9, 40])]] * 2
        names = list(Vocabulary.parse('coco').names)
        file = write_coco(Path('made') / part, names, boxes, (HEIGHT, WIDTH))
        root = Path('data/coco2014')
        (root / 'annotations').mkdir(parents=True, exist_ok=True)
        file.rename(root / f'annotations/instances_{part}.json')
        (file.parent / 'images').rename(root / part)


def write_voc_episodes() -> None:
    for stem in ('1', '2', '3'):
        pair(VOC / f'JPEGImages/{stem}.jpg', VOC / f'SegmentationClassAug/{stem}.png', [1, 6, 255])
        pair(VOC / f'JPEGImages/{stem}.jpg', VOC / f'SegmentationClass/{stem}.png', [1, 6, 255])
    lines(VOC / 'ImageSets/Segmentation/trainaug.txt', '1', '2')
    lines(VOC / 'ImageSets/Segmentation/val.txt', '3')


EPISODES = {
    'pascal5i': (write_voc_episodes, 5, 0, {0, 1}, {-1, 0, 1}, 1000),
    'coco20i': (write_coco2014, None, 0, {0, 1}, {0, 1}, 1000),
    'fss1000': (write_fss, 0, 2, {0, 1}, {0, 1}, 2),
}


@pytest.mark.parametrize('base', sorted(EPISODES))
def test_episodes(base: str) -> None:
    write, trained, tested, train_labels, test_labels, count = EPISODES[base]
    write()
    config = load_config(BASES / 'few_shot.py', {'data': base})
    check_needs(config)
    config.train_dataloader |= {'batch_size': 2, 'num_workers': 0, 'persistent_workers': False}
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    batch: Any = next(iter(loader))
    assert [image.shape for image in batch['inputs']] == [(3, 480, 480)] * 4
    for sample in batch['data_samples']:
        assert trained is None or sample.class_id == trained
        assert set(sample.gt_sem_seg.data.unique().tolist()) == train_labels
    dataset = DATASETS.build(config.test_dataloader.dataset)
    assert len(dataset) == count
    sample = dataset[0]['data_samples']
    labels = sample.gt_sem_seg.data
    assert (sample.class_id, sample.ori_shape, labels.shape) == (tested, (480, 480), (1, 480, 480))
    assert set(labels.unique().tolist()) == test_labels
    metric = METRICS.build(config.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    data = {'pred_sem_seg': {'data': labels.clamp(min=0)}, 'gt_sem_seg': {'data': labels}}
    metric.process({}, [{**data, 'class_id': sample.class_id}])
    classes = len(dataset.metainfo['episode_classes'])
    assert metric.evaluate(1) == pytest.approx({'few_shot/mIoU': 1 / classes, 'few_shot/FB_IoU': 1})


def test_lseg_trains_on_episodes_and_is_scored_on_them() -> None:
    write_voc_episodes()
    config = load_config(BASES / 'few_shot.py', {'data': 'pascal5i'})
    for loader in (config.train_dataloader, config.test_dataloader):
        loader |= {'num_workers': 0, 'persistent_workers': False}
        next(step for step in loader.dataset.pipeline if step.type == 'ovd.SquareResize').size = 64
    config.test_dataloader.dataset.num_episodes = 4
    names = Vocabulary.parse('fewshot_pascal').names
    model = segmentor(text=word_vectors([*names, 'others']), pair_with='others')
    data: Any = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    losses = losses_of(model, data)
    assert torch.isfinite(losses['loss_seg'])
    tests = Runner.build_dataloader(config.test_dataloader, seed=0)
    evaluator = Evaluator([METRICS.build(config.test_evaluator)])
    evaluator.dataset_meta = tests.dataset.metainfo
    model.eval()
    for each in tests:
        with torch.no_grad():
            evaluator.process(model.test_step(each), each)
    metrics = evaluator.evaluate(len(tests.dataset))
    assert set(metrics) == {'few_shot/mIoU', 'few_shot/FB_IoU'}
    report = evaluator.metrics[0].report
    assert [row['episodes'] for row in report['per_class']] == [4, 0, 0, 0, 0]


def test_seven_data_sets() -> None:
    write_ade()
    write_stuff()
    street = {
        'data/bdd100k': ('images/10k/train/a.jpg', 'labels/sem_seg/masks/train/a.png', [0, 18, 255]),
        'data/cityscapes': (
            'leftImg8bit/train/ulm/a_leftImg8bit.png',
            'gtFine/train/ulm/a_gtFine_labelIds.png',
            [7, 33, 3],
        ),
        'data/idd': (
            'leftImg8bit/train/1/a_leftImg8bit.png',
            'gtFine/train/1/a_gtFine_labellevel3Ids.png',
            [0, 8, 21, 255],
        ),
        'data/mapillary': ('training/images/a.jpg', 'training/v1.2/labels/a.png', [13, 21, 65]),
        'data/sunrgbd': ('images/train/a.jpg', 'labels/train/a.png', [0, 1, 37]),
    }
    for root, (image, labels, ids) in street.items():
        pair(Path(root) / image, Path(root) / labels, ids)
    config = load_config(BASES / 'mix7_seg.py')
    check_needs(config)
    config.train_dataloader |= {'num_workers': 0, 'persistent_workers': False, 'batch_size': 7}
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    assert len(loader.dataset) == 7
    samples = [loader.dataset[index]['data_samples'].gt_sem_seg.data for index in range(7)]
    names = Vocabulary.parse('mix7').names
    words = [{names[i] for i in labels.unique().tolist() if i >= 0} for labels in samples]
    possible = [
        {'wall', 'flag'},
        {'road', 'bicycle'},
        {'road', 'bicycle'},
        {'person', 'toothbrush', 'banner'},
        {'road', 'autorickshaw'},
        {'road', 'rider'},
        {'wall', 'bag'},
    ]
    assert all(found and found <= known for found, known in zip(words, possible))
    batch: Any = next(iter(loader))
    assert all(isinstance(image, torch.Tensor) for image in batch['inputs'])


def test_json_of_the_report_is_plain(tmp_path: Path) -> None:
    """What the few-shot and segmentation metrics write can be read anywhere."""
    write_voc()
    config = load_config(BASES / 'segmentation.py', {'data': 'voc'})
    dataset = DATASETS.build({**config.test_dataloader.dataset, 'vocabulary': 'voc'})
    metric = METRICS.build({**config.test_evaluator, 'out_file': str(tmp_path / 'r.json')})
    metric.dataset_meta = dataset.metainfo
    labels = dataset[0]['data_samples'].gt_sem_seg.data
    metric.process({}, [{'pred_sem_seg': {'data': labels}, 'gt_sem_seg': {'data': labels}}])
    metric.evaluate(1)
    report = json.loads((tmp_path / 'r.json').read_text())
    assert report['protocol']['background'] == 'class'
    assert report['protocol']['annotations'].endswith('val.txt')
