"""Every evaluation of GLIP through tools/test.py, with the shipped configs at toy width.

The model's own detections serve as truth: whatever is lost or shifted between image, sentence, boxes in the
frame of the original image and metric would cost recall or precision, which must be one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ovd.checkpoints.writing import save_tensors
from ovd.config import load_config
from ovd.registry import DATASETS, MODELS
from ovd.training.options import prepare_testing
from ovd.training.runner import ToolRunner, build_runner
from tests.cli.test_tools import error_line, tool
from tests.helpers import ROOT, write_coco, write_image
from tests.toys.glip import slim, spread, toy_glip

pytest.importorskip('transformers')

SIZE = (60, 90)  # of the images; they are read at 64 x 96 pixels
CAPTION = 'a red star above a big ring'
SECTIONS = (
    'model',
    'test_dataloader',
    'test_cfg',
    'test_evaluator',
    'default_scope',
    'default_hooks',
    'env_cfg',
)
PLACEHOLDER = [10.0, 10.0, 20.0, 20.0]


class Case:
    """A shipped config at toy width, its weights, and the tool."""

    def __init__(self, name: str, folder: Path, change: Callable[[Config], None], **test_cfg: Any) -> None:
        shipped = slim(load_config(ROOT / 'configs' / f'{name}.py'), folder / 'bert')
        config = Config({key: shipped[key] for key in SECTIONS} | {'work_dir': str(folder / 'work')})
        config.test_dataloader.num_workers = 0
        config.test_dataloader.pop('persistent_workers')
        change(config)
        for step in config.test_dataloader.dataset.pipeline:
            if step.type == 'FixScaleResize':
                step.scale = (64, 96)
        config.model.test_cfg.update(score_thr=0.0, nms_pre=20, **test_cfg)
        self.folder = folder
        self.config = folder / 'config.py'
        config.dump(self.config)
        self.weights = folder / 'weights.safetensors'
        init_default_scope('mmdet')
        model = MODELS.build(load_config(self.config).model)
        spread(model)
        save_tensors(self.weights, model.state_dict())

    def predictions(self) -> list[DetDataSample]:
        """What the model finds, by the loader of the tool."""
        config = load_config(self.config)
        prepare_testing(config, self.weights)
        runner = build_runner(config)
        runner.load_or_resume()
        runner.model.eval()
        with torch.no_grad():
            return [
                sample for batch in runner.test_loop.dataloader for sample in runner.model.test_step(batch)
            ]

    def report(self, *options: str) -> dict[str, Any]:
        out = self.folder / 'metrics.json'
        assert tool('test', self.config, self.weights, '--out', out, *options) == 0
        return json.loads(out.read_text())


def xywh(box: torch.Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def sentences(folder: Path, captions: list[str], **entry: Any) -> dict[str, Any]:
    """MDETR's layout: one image, with a sentence an entry."""
    write_image(folder / 'images' / 'a.png', *SIZE)
    images = [
        {'id': number, 'file_name': 'a.png', 'height': SIZE[0], 'width': SIZE[1], 'caption': text, **entry}
        for number, text in enumerate(captions)
    ]
    return {'images': images, 'annotations': []}


def write_found(file: Path, content: dict[str, Any], samples: list[DetDataSample]) -> None:
    """The best box of each label as the truth."""
    content['annotations'] = []
    for sample in samples:
        found = sample.pred_instances
        for label in found.labels.unique().tolist():
            best = found.bboxes[found.labels == label][0]
            content['annotations'].append(
                {'image_id': sample.img_id, 'bbox': xywh(best), 'phrase_ids': label}
            )
    file.write_text(json.dumps(content))


def test_flickr30k(tmp_path: Path) -> None:
    def change(config: Config) -> None:
        config.test_dataloader.dataset.common.update(data_root=str(tmp_path), data_prefix={'img': 'images'})

    case = Case('glip_t_flickr30k', tmp_path, change)
    spans = [[[0, 10]], [[17, 27]]]
    content = sentences(tmp_path, [CAPTION, f'{CAPTION}.'], tokens_positive_eval=spans)
    content['annotations'] = [
        {'image_id': image, 'bbox': PLACEHOLDER, 'phrase_ids': phrase}
        for image in (0, 1)
        for phrase in (0, 1)
    ]
    file = tmp_path / 'final_flickr_separateGT_val.json'
    file.write_text(json.dumps(content))
    samples = case.predictions()
    assert [sample.part for sample in samples] == ['val', 'val']
    assert set(samples[0].pred_instances.label_names) == {'a red star', 'a big ring'}
    write_found(file, content, samples)
    report = case.report()
    metrics = report['metrics']
    assert metrics['val/recall@1'] == metrics['merged/val/recall@1'] == 1
    assert metrics['mean_of_1/recall@1'] == 1
    assert list(report['protocol']['missing_parts']) == ['test']
    (row,) = report['per_part']
    assert (row['protocol']['phrases'], row['protocol']['boxes']) == (4, 'any')
    assert report['merged/per_part'][0]['protocol']['boxes'] == 'merged'


def test_referring_expressions(tmp_path: Path) -> None:
    def change(config: Config) -> None:
        config.test_dataloader.dataset.common.update(data_root=str(tmp_path), data_prefix={'img': 'images'})

    case = Case('glip_t_refcoco', tmp_path, change)
    files = tmp_path / 'refcoco'
    files.mkdir()
    content = sentences(tmp_path, ['the red star', 'ring above the car'], dataset_name='refcoco+')
    content['annotations'] = [{'image_id': image, 'bbox': PLACEHOLDER} for image in (0, 1)]
    (files / 'finetune_refcoco+_testA.json').write_text(json.dumps(content))
    mixed = sentences(tmp_path, ['the red star'] * 3)
    for image, name in zip(mixed['images'], ('refcoco', 'refcoco+', 'refcocog')):
        image['dataset_name'] = name
    mixed['annotations'] = [{'image_id': image, 'bbox': PLACEHOLDER} for image in range(3)]
    (files / 'final_refexp_val.json').write_text(json.dumps(mixed))
    by_part: dict[str, list[DetDataSample]] = {}
    for sample in case.predictions():
        by_part.setdefault(sample.part, []).append(sample)
    counts = {part: len(samples) for part, samples in by_part.items()}
    assert counts == {'refcoco_val': 1, 'refcoco+_val': 1, 'refcoco+_testA': 2, 'refcocog_val': 1}
    answer = by_part['refcocog_val'][0].pred_instances
    assert 1 < len(answer) <= 10
    assert set(answer.label_names) == {'the red star'}
    write_found(files / 'finetune_refcoco+_testA.json', content, by_part['refcoco+_testA'])
    report = case.report()
    assert report['metrics']['refcoco+_testA/precision@1'] == 1
    assert 0 <= report['metrics']['mean_of_4/precision@1'] < 1
    assert set(report['protocol']['missing_parts']) == {
        'refcoco_testA',
        'refcoco_testB',
        'refcoco+_testB',
        'refcocog_test',
    }


def coco_of_found(folder: Path, names: list[str], samples: list[DetDataSample]) -> Path:
    """A COCO file whose boxes are the detections."""
    boxes = [
        [(label, xywh(box)) for label, box in zip(s.pred_instances.labels.tolist(), s.pred_instances.bboxes)]
        for s in samples
    ]
    return write_coco(folder, names, boxes, SIZE)


def test_odinw(tmp_path: Path) -> None:
    classes = {'animals': ['dog', 'cat'], 'hands': ['hand']}
    prompts = {'hands': {'hand': {'suffix': ' of a person'}}}

    def change(config: Config) -> None:
        config.test_dataloader.dataset.parts = {
            part: {
                'data_root': str(tmp_path / part),
                'ann_file': 'instances.json',
                'data_prefix': {'img': 'images'},
                'prompts': prompts.get(part, {}),
            }
            for part in [*classes, 'cows']
        }

    case = Case('glip_t_odinw13_worded', tmp_path, change, max_per_img=1)
    for part, names in classes.items():
        write_coco(tmp_path / part, names, [[(0, PLACEHOLDER)], []], SIZE)
    samples = case.predictions()
    assert [sample.part for sample in samples] == ['animals', 'animals', 'hands', 'hands']
    assert samples[0].pred_instances.label_names[0] in classes['animals']
    assert samples[2].pred_instances.label_names == ['hand']
    assert samples[2].wordings == prompts['hands']
    for part, found in (('animals', samples[:2]), ('hands', samples[2:])):
        coco_of_found(tmp_path / part, classes[part], found)
    report = case.report()
    metrics = report['metrics']
    assert metrics['hands/bbox/AP'] == metrics['animals/bbox/AP'] == 1
    assert metrics['mean_of_2/bbox/AP'] == metrics['median_of_2/bbox/AP'] == 1
    assert list(report['protocol']['missing_parts']) == ['cows']


def one_set(tmp_path: Path) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        config.test_dataloader.dataset.update(
            data_root=str(tmp_path),
            ann_file='instances.json',
            data_prefix={'img': 'images'},
            vocabulary=['cat', 'dog', 'bird'],
        )
        config.model.text.vocabulary = ['cat', 'dog', 'bird']

    return change


def test_coco(tmp_path: Path) -> None:
    case = Case('glip_t_a_o365', tmp_path, one_set(tmp_path), max_per_img=1)
    write_coco(tmp_path, ['bird', 'cat', 'dog'], [[(0, PLACEHOLDER)], []], SIZE)
    samples = case.predictions()
    coco_of_found(tmp_path, ['cat', 'dog', 'bird'], samples)
    report = case.report()
    assert report['metrics']['bbox/AP'] == 1
    assert report['protocol']['classes_competing'] == 3
    assert report['protocol']['prompting'] == {
        'names_per_prompt': None,
        'vocabulary_sentences': 1,
        'ranking': 'centerness',
        'aggregation': 'mean',
        'score_thr': 0.0,
    }


def test_lvis_has_both_kinds_of_ap(tmp_path: Path) -> None:
    """Two sentences, a box each: LVIS's AP keeps one box an image here, fixed AP keeps both."""

    def change(config: Config) -> None:
        one_set(tmp_path)(config)
        config.test_dataloader.dataset.data_prefix.img = ''
        config.test_evaluator[0].max_detections = 1
        config.model.text.names_per_prompt = 2

    case = Case('glip_t_cap4m_to_lvis', tmp_path, change, max_per_prompt=1)
    names = ['cat', 'dog', 'bird']

    def add_lvis_keys(file: Path) -> None:
        content = json.loads(file.read_text())
        for category, frequency in zip(content['categories'], 'rcf'):
            category['frequency'] = frequency
        for image in content['images']:
            image['coco_url'] = f'http://cocodataset.org/images/{image["file_name"]}'
            image |= {'file_name': 'nowhere.png', 'neg_category_ids': [], 'not_exhaustive_category_ids': []}
        file.write_text(json.dumps(content))

    add_lvis_keys(write_coco(tmp_path, names, [[(0, PLACEHOLDER)], []], SIZE))
    samples = case.predictions()
    assert [len(sample.pred_instances) for sample in samples] == [2, 2]
    add_lvis_keys(coco_of_found(tmp_path, names, samples))
    report = case.report()
    assert report['metrics']['fixed/bbox/AP'] == 1
    assert report['metrics']['bbox/AP'] < 1
    assert report['protocol']['max_detections_per'] == 'image'
    assert report['protocol']['fixed/max_detections_per'] == 'class'
    assert {row['name'] for row in report['fixed/per_class']} == set(names)


def test_data_of_other_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are places in the model's vocabulary: in another order each would be scored as another class."""
    case = Case('glip_t_a_o365', tmp_path, one_set(tmp_path))
    write_coco(tmp_path, ['bird', 'cat', 'dog'], [[(0, PLACEHOLDER)]], SIZE)
    options = ['--cfg-options', "model.text.vocabulary=['dog', 'cat', 'bird']"]
    assert tool('test', case.config, case.weights, *options) == 2
    assert "class 0 is 'cat' in the data (3 classes) and 'dog' in the model" in error_line(capsys)


@pytest.mark.parametrize(
    ('name', 'option', 'message'),
    [
        ('glip_t_flickr30k', {'vocabulary': 'dog'}, '--vocabulary: ovd.NamedParts'),
        ('glip_shapes', {'vocabulary': 'dog'}, '--vocabulary: ovd.GroundingDataset'),
        ('glip_t_a_o365', {'shuffle_text': True}, 'ovd.OpenVocabularyDataset'),
        ('glip_t_refcoco', {'shuffle_text': True}, 'ovd.NamedParts'),
    ],
)
def test_options_without_a_use_are_refused(
    tmp_path: Path, name: str, option: dict[str, Any], message: str
) -> None:
    weights = tmp_path / 'weights.pth'
    weights.touch()
    with pytest.raises(ValueError, match=message):
        prepare_testing(load_config(ROOT / 'configs' / f'{name}.py'), weights, **option)


def test_training_needs_the_model_s_classes_unless_samples_bring_theirs(tmp_path: Path) -> None:
    register_all_modules(init_default_scope=True)
    ours, theirs = ['dog', 'cat'], ['cat', 'dog']
    model = toy_glip(tmp_path / 'bert')
    model.set_vocabulary(ours)
    write_coco(tmp_path, theirs, [[(0, PLACEHOLDER)]], SIZE)
    names = {'type': 'ovd.SampleClassNames', 'vocabulary': theirs, 'tokenizer': str(tmp_path / 'bert')}

    def check(vocabulary: list[str], *steps: dict[str, Any]) -> None:
        data = {
            'type': 'ovd.OpenVocabularyDataset',
            'ann_file': str(tmp_path / 'instances.json'),
            'data_prefix': {'img': str(tmp_path / 'images')},
            'vocabulary': vocabulary,
            'pipeline': steps,
        }
        repeated = DATASETS.build({'type': 'RepeatDataset', 'times': 2, 'dataset': data})
        runner = SimpleNamespace(model=model)
        ToolRunner._checked(runner, SimpleNamespace(dataloader=SimpleNamespace(dataset=repeated)))

    check(ours)
    check(theirs, names)
    with pytest.raises(ValueError, match=r"0.*'cat'.*'dog'"):
        check(theirs)
