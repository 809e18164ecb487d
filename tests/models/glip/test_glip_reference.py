"""Side by side with mmdet's GLIP on the same random weights: class lists, chunks, phrases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from torch import nn

from ovd.checkpoints.loading import load_for_inference
from ovd.config import load_config
from ovd.conversion.glip import convert_glip
from ovd.models.glip.detector import GLIP
from tests.helpers import ROOT
from tests.toys.bert import write_bert
from tests.toys.glip import WORDS, batch, images, toy_config, toy_glip
from tests.toys.reference.peer_glip import toy_peer

pytest.importorskip('transformers')

SWIN = {
    'backbone': {
        'type': 'mmdet.SwinTransformer',
        'embed_dims': 12,
        'depths': [1, 1, 2, 1],
        'num_heads': [1, 2, 3, 4],
        'window_size': 7,
        'out_indices': (1, 2, 3),
        'drop_path_rate': 0.2,
    },
    'neck': {
        'type': 'mmdet.FPN',
        'in_channels': [24, 48, 96],
        'out_channels': 32,
        'start_level': 0,
        'relu_before_extra_convs': True,
        'add_extra_convs': 'on_output',
        'num_outs': 5,
    },
}


def pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool, swin: bool = False, **test_cfg: Any
) -> tuple[GLIP, nn.Module]:
    """Our model with the converted weights of the peer, as the reference preset says."""
    register_all_modules(init_default_scope=False)
    folder = write_bert(tmp_path / 'bert')
    config = toy_config(folder, deep)
    parts = SWIN if swin else {part: config[part] for part in ('backbone', 'neck')}
    peer = toy_peer(folder, monkeypatch, deep, **parts, **test_cfg)
    preset = load_config(ROOT / 'configs' / 'glip_t_a_o365_reference_mmdet.py').model
    reference = {
        'bbox_head': {**config['bbox_head'], 'dyhead': preset.bbox_head.dyhead},
        'test_cfg': {**preset.test_cfg, 'max_per_img': None, 'max_per_prompt': 100},
    }
    ours = toy_glip(folder, deep, **parts, **reference)
    peer_head = peer.bbox_head.head
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for name, parameter in peer_head.named_parameters():
            if parameter.dim() > 1 and ('dyhead_tower' in name or 'pred' in name or 'center' in name):
                width = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
        peer_head.bias0.fill_(-1.0)
        peer_head.bias_lang.copy_(torch.randn(peer_head.bias_lang.shape, generator=generator))
    converted = convert_glip(peer.state_dict())
    assert not converted.unmatched
    load_for_inference(ours, converted.tensors)
    return ours.eval(), peer


def assert_equal_detections(ours: DetDataSample, theirs: DetDataSample) -> None:
    """Same boxes in the same order but for ties: scores and boxes to 1e-4."""
    left, right = ours.pred_instances, theirs.pred_instances
    assert len(left) == len(right) > 20
    torch.testing.assert_close(left.scores, right.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(left.bboxes, right.bboxes, atol=1e-4, rtol=1e-5)
    assert torch.equal(left.labels, right.labels)
    assert left.label_names == list(right.label_names)


@pytest.mark.parametrize(('deep', 'swin'), [(True, False), (False, False), (True, True)])
def test_class_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool, swin: bool) -> None:
    ours, peer = pair(tmp_path, monkeypatch, deep, swin)
    for shape in ((64, 96), (96, 64)):
        data = batch(images([shape]))
        theirs = batch(images([shape]), text=[tuple(WORDS)], custom_entities=[True])
        for inputs in (data, theirs):
            inputs['data_samples'][0].set_metainfo({'scale_factor': (0.5, 0.4)})
        with torch.no_grad():
            assert_equal_detections(ours.test_step(data)[0], peer.test_step(theirs)[0])


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
def test_long_lists_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    ours, peer = pair(tmp_path, monkeypatch, deep, chunked_size=40)
    words = [f'class {number}' for number in range(90)]
    ours.names_per_prompt = 40
    ours.set_vocabulary(words)
    theirs = batch(images([(64, 96)]), text=[tuple(words)], custom_entities=[True])
    with torch.no_grad():
        assert_equal_detections(ours.test_step(batch(images([(64, 96)])))[0], peer.test_step(theirs)[0])


def test_phrases_of_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peer = pair(tmp_path, monkeypatch, deep=True)
    captions = ['a red star above a big ring', 'the dog and a cat, and the bird.']
    spans = [[[[0, 10]], [[17, 27]]], [[[0, 7]], [[12, 17], [23, 31]]]]
    pictures = images([(64, 96), (64, 96)])
    data = batch(pictures, text=captions, tokens_positive=spans)
    theirs = batch(pictures, text=captions, tokens_positive=spans)
    with torch.no_grad():
        for left, right in zip(ours.test_step(data), peer.test_step(theirs)):
            assert_equal_detections(left, right)
