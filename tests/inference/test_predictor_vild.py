"""The predictor with ViLD: numbers of the test loop, answers that depend on image and words alone."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import DefaultScope

from ovd.cli.console import run_tool
from ovd.cli.main import run
from ovd.config import load_config
from ovd.encoders.text_encoder import TextEncoder
from ovd.inference.predictor import Prediction, Predictor
from ovd.registry import METRICS, MODELS
from tests.helpers import ROOT, write_coco, write_image

WORDS = ['star', 'heart', 'ring', 'red cup', 'tree']

TINY_CLIP = {
    'embed_dim': 16,
    'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 32, 'head_width': 16, 'patch_size': 16},
    'text_cfg': {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1},
}

CONFIG = """
default_scope = 'mmdet'
log_level = 'WARNING'
box_coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
roi_align = dict(type='RoIAlign', output_size=7, sampling_ratio=2)
strides = [4, 8, 16, 32]
pool = dict(type='SingleRoIExtractor', roi_layer=roi_align, out_channels=16, featmap_strides=strides)
rcnn = dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=30, mask_thr_binary=0.5)
model = dict(
    type='ovd.ViLD',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    text=dict(vocabulary=WORDS, templates='single', encoder=dict(model=CLIP, pretrained='random:0')),
    backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=True),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=16,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=box_coder,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss')),
    roi_head=dict(
        type='ovd.ViLDRoIHead',
        bbox_roi_extractor=pool,
        bbox_head=dict(
            type='ovd.ViLDBBoxHead', mode='vild_text', in_channels=16, embed_dim=16,
            trunk=dict(num_convs=0, num_fcs=1, fc_channels=32), bbox_coder=box_coder,
            loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='L1Loss')),
        mask_roi_extractor=pool,
        mask_head=dict(
            type='FCNMaskHead', num_convs=1, in_channels=16, conv_out_channels=8, num_classes=1,
            class_agnostic=True, loss_mask=dict(type='CrossEntropyLoss', use_mask=True))),
    train_cfg=None,
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=rcnn))
del box_coder, roi_align, strides, pool, rcnn
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularyDataset', ann_file=ANNOTATIONS, data_prefix=dict(img=IMAGES),
        vocabulary=WORDS, test_mode=True,
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs',
                 meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_evaluator = dict(type='ovd.KeepDetections')
test_cfg = dict()
"""


@METRICS.register_module()
class KeepDetections(BaseMetric):
    """Keeps what the test loop hands to its metrics."""

    kept: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Any) -> None:
        KeepDetections.kept.extend(data_samples)
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {'images': float(sum(results))}


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny ViLD with random weights, four images of two sizes, and their annotations."""
    folder = tmp_path_factory.mktemp('toy')
    clip = folder / 'tiny_clip.json'
    clip.write_text(json.dumps(TINY_CLIP))
    annotations = write_coco(
        folder, WORDS, [[(0, [4, 4, 20, 20])], [(3, [10, 8, 30, 20])], [], [(2, [1, 1, 9, 9])]]
    )
    for index in (1, 2):
        write_image(folder / 'images' / f'{index:06d}.png', 64, 48, seed=index)
    content = json.loads(annotations.read_text())
    for image in content['images'][1:3]:
        image.update(height=64, width=48)
    annotations.write_text(json.dumps(content))
    values = {
        'WORDS': WORDS,
        'CLIP': str(clip),
        'ANNOTATIONS': str(annotations),
        'IMAGES': str(folder / 'images'),
    }
    text = CONFIG
    for name, value in values.items():
        text = text.replace(name, repr(value))
    (folder / 'toy.py').write_text(text)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(load_config(folder / 'toy.py').model)
    torch.save({'state_dict': model.state_dict()}, folder / 'toy.pth')
    images = sorted((folder / 'images').glob('*.png'))
    return {'config': folder / 'toy.py', 'checkpoint': folder / 'toy.pth', 'images': images}


@pytest.fixture
def predictor(toy: dict[str, Any]) -> Predictor:
    return Predictor(toy['config'], toy['checkpoint'], device='cpu')


def load_tool(name: str) -> ModuleType:
    """A script of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(prediction: Prediction) -> list[tuple[str, tuple[float, ...], float]]:
    """Name, box and score of each instance, in an order that depends neither on labels nor on rounding."""
    found = [
        (name, tuple(np.round(box, 2).tolist()), round(float(score), 4))
        for name, box, score in zip(prediction.names, prediction.boxes, prediction.scores)
    ]
    return sorted(found)


def assert_same(ours: Prediction, other: Prediction, tolerance: float = 0.0) -> None:
    """Equal instances in the same order."""
    assert ours.names == other.names
    assert ours.size == other.size
    np.testing.assert_allclose(ours.boxes, other.boxes, rtol=0, atol=100 * tolerance)
    np.testing.assert_allclose(ours.scores, other.scores, rtol=0, atol=tolerance)
    assert ours.masks is not None
    assert other.masks is not None
    assert (ours.masks != other.masks).mean() <= tolerance


def test_numbers_are_those_of_the_test_tool(
    predictor: Predictor, toy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    KeepDetections.kept = []
    arguments = [str(toy['config']), str(toy['checkpoint']), '--work-dir', str(tmp_path)]
    assert run_tool(load_tool('test').main, arguments) == 0, capsys.readouterr().err
    protocol = json.loads((tmp_path / 'metrics.json').read_text())['protocol']
    assert protocol['templates'] == 'single'
    assert len(protocol['text_encoder']) == 16
    assert (protocol['score_threshold'], protocol['max_per_image']) == (0.0, 30)
    assert protocol['nms'] == {'type': 'nms', 'iou_threshold': 0.5}
    predictions = predictor.predict(toy['images'], raw=True)
    assert [len(prediction) for prediction in predictions] == [30] * 4
    for prediction, sample in zip(predictions, KeepDetections.kept):
        expected = sample['pred_instances']
        assert np.array_equal(prediction.boxes, expected['bboxes'].numpy())
        assert np.array_equal(prediction.scores, expected['scores'].numpy())
        assert np.array_equal(prediction.labels, expected['labels'].numpy())
        assert prediction.masks is not None
        assert np.array_equal(prediction.masks, expected['masks'].numpy())
        assert prediction.names == tuple(WORDS[label] for label in expected['labels'])
        assert prediction.size == tuple(sample['ori_shape'])


def test_the_command_writes_the_results_that_the_test_tool_dumps(toy: dict[str, Any], tmp_path: Path) -> None:
    model = ['--config', str(toy['config']), '--checkpoint', str(toy['checkpoint'])]
    dump = tmp_path / 'dump.json'
    testing = [*model[1::2], '--work-dir', str(tmp_path / 'work'), '--dump', str(dump)]
    assert run(['test', *testing]) == 0
    expected = json.loads(dump.read_text())
    assert len(expected) == 120

    def predicted(name: str, *chosen: str) -> list[dict[str, Any]]:
        call = [
            'predict',
            ', '.join(WORDS),
            str(toy['images'][0].parent),
            *chosen,
            '--device',
            'cpu',
            '--raw',
        ]
        out = tmp_path / name
        annotations = ['--annotations', str(toy['config'].parent / 'instances.json')]
        assert run([*call, *annotations, '--out', str(out), '--save', 'coco', '--pictures', 'none']) == 0
        saved = json.loads((out / 'coco.json').read_text())['annotations']
        results: list[dict[str, Any]] = json.loads((out / 'predictions.json').read_text())
        assert [[item[key] for key in sorted(results[0])] for item in saved] == [
            [item[key] for key in sorted(results[0])] for item in results
        ]
        return results

    assert predicted('files', *model) == expected
    assert run(['pack', *model[1::2], str(tmp_path / 'folder')]) == 0
    assert predicted('folder', '--model', str(tmp_path / 'folder')) == expected


def test_batches_do_not_change_the_answer(predictor: Predictor, toy: dict[str, Any]) -> None:
    alone = predictor.predict(toy['images'], raw=True)
    together = predictor.predict(toy['images'], batch_size=4, raw=True)
    backwards = predictor.predict(toy['images'][::-1], batch_size=3, raw=True)[::-1]
    for one, two, three in zip(alone, together, backwards):
        assert_same(one, two, 1e-5)
        assert_same(one, three, 1e-5)


def test_permuted_words_permute_labels_only(predictor: Predictor, toy: dict[str, Any]) -> None:
    before = predictor.predict(toy['images'], raw=True)
    order = [3, 0, 4, 1, 2]
    predictor.set_vocabulary([WORDS[index] for index in order])
    for one, other in zip(before, predictor.predict(toy['images'], raw=True)):
        assert rows(one) == rows(other)
        assert [order[label] for label in other.labels] == [WORDS.index(name) for name in other.names]
        assert set(one.labels) == {order[label] for label in other.labels}


def test_words_asked_twice_get_the_same_answer_without_encoding(
    predictor: Predictor, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predictor.set_vocabulary('bolt, cross').predict(toy['images'][0], raw=True)[0]
    predictor.set_vocabulary('moon')

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('a known vocabulary was encoded again')

    monkeypatch.setattr(TextEncoder, 'encode', refuse)
    again = predictor.set_vocabulary('bolt, cross').predict(toy['images'][0], raw=True)[0]
    assert_same(first, again)


@pytest.mark.parametrize('count', [1, 300])
def test_any_number_of_words(predictor: Predictor, toy: dict[str, Any], count: int) -> None:
    words = [f'thing {index}' for index in range(count)]
    (prediction,) = predictor.set_vocabulary(words).predict(toy['images'][0], raw=True)
    assert 0 < len(prediction) <= 30
    assert set(prediction.names) <= set(words)
    assert np.isfinite(prediction.scores).all()


def test_checkpoint_holds_no_words(toy: dict[str, Any]) -> None:
    tensors = torch.load(toy['checkpoint'], weights_only=True)['state_dict']
    assert not [key for key in tensors if 'text' in key or 'novel' in key]
