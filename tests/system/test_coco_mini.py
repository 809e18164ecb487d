"""Real photographs: the whole ViLD chain on COCO images, with the real-size config and the tools as they are.

Proposal network, region cache, Mask R-CNN R50-FPN, evaluation and a drawn answer; the class vectors are
OpenAI's of the COCO names; the image tower is a ViT-B/32 with random weights in a local folder, and the
proposal network starts from random weights in torchvision's layout.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from ovd.encoders.loading import build_clip, save_clip
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.regions.store import RegionStore
from tests.helpers import ROOT, shared_path

SMALL_RPN = """
_base_ = './configs/vild/rpn_r50_coco.py'
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='ovd.PackDetInputs')]))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""
SMALL = [
    'train_dataloader.batch_size=1',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=100',
    'default_hooks.checkpoint.interval=2',
    'optim_wrapper.optimizer.lr=0.001',
    'test_dataloader.dataset.indices=2',
]


def tool(name: str) -> Callable[[list[str]], int | None]:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_whole_chain_runs_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shared_path('data/coco_mini')
    matrix = shared_path('data/clip_text/coco_clip_a+cname.npy')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data' / 'coco').mkdir(parents=True)
    for folder in ('annotations', 'train2017', 'val2017'):
        (tmp_path / 'data' / 'coco' / folder).symlink_to(images / folder)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    TextEmbeddings.from_matrix(matrix, 'coco').save('coco.vocab.safetensors')
    clip = build_clip('ViT-B-32-quickgelu', 'random:0')
    save_clip('data/weights/clip_vit_b32', clip.model, clip.config, dtype=torch.float16)
    torch.save(resnet50().state_dict(), 'data/weights/resnet50.pth')

    Path('rpn_small.py').write_text(SMALL_RPN)
    tool('train')(['rpn_small.py', '--work-dir', 'work_dirs/rpn_r50_coco', '--cfg-options', *SMALL])
    store = ['region_cache.proposals.top=4', 'region_cache.image_encoder.dtype=float32']
    store.append('region_cache.proposals.config=rpn_small.py')
    tool('cache_clip_regions')(['configs/vild_r50_coco.py', '--limit', '3', '--cfg-options', *store])
    regions = RegionStore('data/coco/regions_train')
    assert len(regions) == 3
    assert regions.header['embed_dim'] == 512

    words = [
        'model.text.embeddings=coco.vocab.safetensors',
        'test_dataloader.dataset.pipeline.1.scale=(192,192)',
    ]
    words.append('model.test_cfg.rpn.max_per_img=30')
    few = ['train_dataloader.dataset.indices=2', 'train_dataloader.dataset.pipeline.2.scale=(192,192)']
    tool('train')(['configs/vild_r50_coco.py', '--cfg-options', *SMALL, *few, *words])
    checkpoint = 'work_dirs/vild_r50_coco/latest.pth'
    tool('test')(
        ['configs/vild_r50_coco.py', checkpoint, '--out', 'metrics.json', '--cfg-options', *SMALL, *words]
    )
    report = json.loads(Path('metrics.json').read_text())
    assert len(report['per_class']) == 65
    assert report['protocol']['images'] == 2

    photograph = next((images / 'val2017').iterdir())
    call = [str(photograph), '--texts', 'dog, bicycle, person', '--score-thr', '0', '--max-per-image', '5']
    call += ['--config', 'configs/vild_r50_coco.py', '--checkpoint', checkpoint, '--out', 'answer']
    assert not tool('demo')([*call, '--cfg-options', *words])
    answer = json.loads(Path(f'answer/{photograph.stem}.json').read_text())
    assert {found['name'] for found in answer['instances']} <= {'dog', 'bicycle', 'person'}
    with Image.open(photograph) as original, Image.open(f'answer/{photograph.stem}.png') as drawn:
        assert drawn.width >= original.width
