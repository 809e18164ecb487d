"""Real photographs and human captions: GLIP-T's wiring with thin layers and random weights, by the tools.

Trains on boxes under the words of captions, is evaluated by the 80 names and by phrases, labels captions for
a student, and draws.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import ROOT, shared_path
from tests.toys.bert import write_bert

pytest.importorskip('transformers')

SMALL = """
_base_ = './configs/glip/glip_t_coco_captions.py'
load_from = None
model = dict(
    text=dict(encoder=dict(model='bert', pretrained=False)),
    backbone=dict(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], init_cfg=None),
    neck=dict(in_channels=[24, 48, 96], out_channels=32),
    bbox_head=dict(
        channels=32,
        num_blocks=2,
        fusion=dict(embed_dims=32, num_heads=4),
        text_layer=dict(num_heads=4, hidden_channels=48),
    ),
    test_cfg=dict(score_thr=0.0, nms_pre=20, max_per_img=10),
)
shrink = dict(type='Resize', scale=(160, 160), keep_ratio=True)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=2, pipeline=[
        dict(type='ovd.LoadImage'),
        dict(type='LoadAnnotations', with_bbox=True),
        shrink,
        dict(type='PackDetInputs', meta_keys=_base_.meta_keys),
    ]),
)
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=2, pipeline=[
        dict(type='ovd.LoadImage'), shrink, dict(type='PackDetInputs', meta_keys=_base_.meta_keys)
    ]),
)
max_iters = 8
train_cfg = dict(max_iters=max_iters, val_interval=100)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
param_scheduler = []
auto_scale_lr = dict(enable=False)
default_hooks = dict(checkpoint=dict(interval=8), logger=dict(interval=1))
needs = []
"""
PHRASES = """
_base_ = './small.py'
test_dataloader = dict(dataset=dict(
    _delete_=True,
    type='ovd.CocoGroundingDataset',
    data_root='data/coco/',
    ann_file='annotations/instances_val2017.json',
    captions='annotations/captions_val2017.json',
    data_prefix=dict(img='val2017'),
    vocabulary='coco',
    words=_base_.caption_words,
    unnamed='drop',
    indices=12,
    test_mode=True,
    pipeline=[
        dict(type='ovd.LoadImage'),
        _base_.shrink,
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=_base_.meta_keys),
    ],
))
test_evaluator = dict(_delete_=True, type='ovd.PhraseRecall')
pseudo_labels = dict(
    out='pseudo.jsonl',
    teacher=dict(config='small.py', checkpoint='work/latest.pth'),
    captions=dict(
        type='ovd.CaptionDataset',
        data_root='data/coco/',
        ann_file='annotations/captions_val2017.json',
        data_prefix=dict(img_path='val2017'),
    ),
    nouns=dict(backend='vocabulary', vocabulary='coco', phrases=True),
    score_thr=0.0,
    max_boxes=1,
)
"""


def tool(name: str) -> Callable[[list[str]], int | None]:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main  # type: ignore[no-any-return]


@pytest.mark.slow
def test_captions_and_boxes_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shared_path('data/coco_mini')
    monkeypatch.chdir(tmp_path)
    Path('data/coco').mkdir(parents=True)
    for folder in ('annotations', 'train2017', 'val2017'):
        Path('data/coco', folder).symlink_to(images / folder)
    Path('configs').symlink_to(ROOT / 'configs')
    write_bert(Path('bert'))
    Path('small.py').write_text(SMALL)
    Path('phrases.py').write_text(PHRASES)

    tool('train')(['small.py', '--work-dir', 'work'])
    lines = next(Path('work').rglob('scalars.json')).read_text().splitlines()
    losses = [json.loads(line)['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 8
    assert losses[-1] < 0.9 * losses[0], losses

    tool('test')(['small.py', 'work/latest.pth', '--out', 'names.json', '--work-dir', 'work'])
    report = json.loads(Path('names.json').read_text())
    assert report['protocol']['images'] == 2
    tool('test')(['phrases.py', 'work/latest.pth', '--out', 'phrases.json', '--work-dir', 'work'])
    metrics = json.loads(Path('phrases.json').read_text())['metrics']
    assert 0 <= metrics['phrase/recall@1'] <= metrics['phrase/recall@10'] <= 1

    tool('pseudo_label')(['phrases.py', '--device', 'cpu', '--limit', '3'])
    labelled = [json.loads(line) for line in Path('pseudo.jsonl').read_text().splitlines()]
    assert labelled
    assert all(region['score'] for line in labelled for region in line['grounding']['regions'])

    line = labelled[0]
    photograph = images / 'val2017' / line['filename']
    call = [str(photograph), '--score-thr', '0', '--config', 'small.py', '--checkpoint', 'work/latest.pth']
    assert not tool('demo')([*call, '--texts', 'dog, bicycle', '--max-per-image', '5', '--out', 'names'])
    answer = json.loads(Path(f'names/{photograph.stem}.json').read_text())
    assert {found['name'] for found in answer['instances']} <= {'dog', 'bicycle'}
    caption = line['grounding']['caption']
    assert not tool('demo')([*call, '--caption', caption, '--max-per-image', '5', '--out', 'sentence'])
    assert json.loads(Path(f'sentence/{photograph.stem}.json').read_text())['caption'] == caption
    for folder in ('names', 'sentence'):
        with Image.open(photograph) as original, Image.open(f'{folder}/{photograph.stem}.png') as drawn:
            assert drawn.width >= original.width
