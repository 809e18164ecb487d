"""Real photographs: LSeg and GroupViT on COCO images, with the real-size configs and the tools as they are.

Masks are COCO's instances, painted; LSeg's class vectors are OpenAI's of the COCO names and its ViT-B/32
starts from random weights in timm's layout; GroupViT is ViT-S/16 with random weights.
"""

import json
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from ovd.checkpoints.writing import save_tensors
from ovd.config import load_config
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.registry import MODELS
from tests.helpers import ROOT, shared_path
from tests.system.test_coco_mini import tool

LSEG = """
_base_ = './configs/lseg/lseg_vitb32_ade20k.py'
coco = dict(
    _delete_=True, type='ovd.OpenVocabularySegDataset', data_root='data/coco/', vocabulary='coco',
    background='class')
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    **coco, ann_file='annotations/instances_train2017.json', data_prefix=dict(img_path='train2017'),
    pipeline=[dict(type='ovd.LoadImage'), dict(type='ovd.LoadSegmentation'),
        dict(type='Resize', scale=(256, 256), keep_ratio=True),
        dict(type='Pad', size=(160, 160), pad_val=dict(img=0, seg=-1)),
        dict(type='RandomCrop', crop_size=(160, 160), ignore_index=-1), dict(type='PackSegInputs')]))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    **coco, ann_file='annotations/instances_val2017.json', data_prefix=dict(img_path='val2017'), indices=2,
    test_mode=True, pipeline=[dict(type='ovd.LoadImage'),
        dict(type='Resize', scale=(256, 256), keep_ratio=True), dict(type='ovd.LoadSegmentation'),
        dict(type='PackSegInputs')]))
needs = []
model = dict(
    text=dict(_delete_=True, vocabulary='coco', embeddings='coco.vocab.safetensors'),
    head=dict(with_background=True), neck=dict(norm_cfg=dict(type='BN')),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=160, stride=96))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3, val_interval=100)
val_dataloader = val_cfg = val_evaluator = None
param_scheduler = []
"""
GROUPVIT = """
_base_ = './configs/groupvit/groupvit_vits16_coco_object.py'
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type='ovd.OpenVocabularySegDataset', data_root='data/coco/', vocabulary='coco',
    background='class', ann_file='annotations/instances_val2017.json', data_prefix=dict(img_path='val2017'),
    indices=1, test_mode=True, pipeline=[dict(type='ovd.LoadImage'),
        dict(type='Resize', scale=(640, 224), keep_ratio=True), dict(type='ovd.LoadSegmentation'),
        dict(type='PackSegInputs')]))
needs = []
model = dict(test_cfg=dict(crop_size=224, stride=112))
"""


@pytest.fixture
def photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with COCO in its place; one of its pictures."""
    images = shared_path('data/coco_mini')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data' / 'coco').mkdir(parents=True)
    for folder in ('annotations', 'train2017', 'val2017'):
        (tmp_path / 'data' / 'coco' / folder).symlink_to(images / folder)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    return next((images / 'val2017').iterdir())


def check_report(path: str, images: int) -> None:
    report = json.loads(Path(path).read_text())
    assert len(report['per_class']) == 81
    assert report['protocol']['images'] == images
    assert 0 <= report['metrics']['seg/mIoU'] <= 1


def check_picture(photograph: Path, words: set[str]) -> None:
    answer = json.loads(Path(f'answer/{photograph.stem}.json').read_text())
    assert {segment['name'] for segment in answer['segments']} <= words
    assert sum(segment['area'] for segment in answer['segments']) <= answer['height'] * answer['width']
    with Image.open(photograph) as original, Image.open(f'answer/{photograph.stem}.png') as drawn:
        assert (answer['height'], answer['width']) == (original.height, original.width)
        assert drawn.width >= original.width


@pytest.mark.slow
def test_lseg_trains_on_photographs_and_answers(photograph: Path) -> None:
    matrix = shared_path('data/clip_text/coco_clip_a+cname.npy')
    TextEmbeddings.from_matrix(matrix, 'coco').save('coco.vocab.safetensors')
    vit = timm.create_model('vit_base_patch32_384')
    save_tensors('data/weights/vit_base_patch32_384.safetensors', vit.state_dict(), {})
    Path('lseg_small.py').write_text(LSEG)
    assert not tool('train')(['lseg_small.py'])
    checkpoint = 'work_dirs/lseg_small/latest.pth'
    assert not tool('test')(['lseg_small.py', checkpoint, '--out', 'metrics.json'])
    check_report('metrics.json', images=2)
    call = [str(photograph), '--texts', 'dog, bicycle, person', '--config', 'lseg_small.py']
    assert not tool('demo')([*call, '--checkpoint', checkpoint, '--out', 'answer'])
    check_picture(photograph, {'dog', 'bicycle', 'person', 'background'})


@pytest.mark.slow
def test_groupvit_answers_on_photographs(photograph: Path) -> None:
    Path('groupvit_small.py').write_text(GROUPVIT)
    config = load_config('groupvit_small.py')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config.model)
    model.init_weights()
    save_tensors('groupvit.safetensors', model.state_dict(), {})
    assert not tool('test')(['groupvit_small.py', 'groupvit.safetensors', '--out', 'metrics.json'])
    check_report('metrics.json', images=1)
    call = [str(photograph), '--texts', 'dog, a red bicycle, person', '--config', 'groupvit_small.py']
    assert not tool('demo')([*call, '--checkpoint', 'groupvit.safetensors', '--out', 'answer'])
    check_picture(photograph, {'dog', 'a red bicycle', 'person', 'background'})
