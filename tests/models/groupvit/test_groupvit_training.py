"""The pre-training configs of GroupViT: schedule, weight decay, and steps at toy width through the tools."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from timm.scheduler import CosineLRScheduler
from torch import nn

from ovd.config import check_needs, find_config, load_config
from ovd.registry import MODELS
from tests.cli.test_tools import equal, tool, weights
from tests.helpers import shared_path
from tests.toys.captions import write_pictures, write_shards
from tests.toys.groupvit import toy_groupvit

NAMES = ['gcc_yfcc', 'gcc_yfcc_reference', 'gcc_redcaps', 'coco_retrieval']
SMALL_MODEL = [
    'model.image_encoder.image_size=32',
    'model.image_encoder.patch_size=8',
    'model.image_encoder.dims=(16, 16, 16)',
    'model.image_encoder.depths=(1, 1, 1)',
    'model.image_encoder.num_heads=(2, 2, 2)',
    'model.image_encoder.num_group_tokens=(6, 3, 0)',
    'model.image_encoder.num_output_groups=(6, 3)',
    'model.text_encoder.width=16',
    'model.text_encoder.heads=2',
    'model.text_encoder.layers=1',
    'model.embed_dim=8',
    'model.hidden_dim=16',
]
SMALL_RUN = [
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.dataset.pipeline.0.size=32',
    'train_cfg.max_iters=2',
    'auto_scale_lr.base_batch_size=4',
    'default_hooks.checkpoint.interval=2',
    'needs=[]',
]


def path(name: str) -> Path:
    return find_config(f'groupvit_vits16_{name}')


def read(name: str) -> Config:
    init_default_scope('mmseg')
    return load_config(path(name))


@pytest.mark.parametrize('name', NAMES)
def test_header_says_how_to_run_it_and_missing_data_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read(name)
    assert f'configs/groupvit_vits16_{name}.py' in path(name).read_text().split('"""')[1]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'data/.*see data/README.md, section'):
        check_needs(config)


@pytest.mark.parametrize(('name', 'pairs'), [('gcc_yfcc', 28_663_147), ('gcc_redcaps', 25_914_635)])
def test_lengths_follow_from_the_number_of_pairs(name: str, pairs: int) -> None:
    config = read(name)
    epoch = pairs // 4096
    assert config.train_cfg.max_iters == 30 * epoch
    assert [step.get('end', step.get('T_max')) for step in config.param_scheduler] == [2 * epoch, 30 * epoch]
    assert config.default_hooks.checkpoint.interval == epoch


@pytest.mark.parametrize('name', ['gcc_yfcc', 'gcc_redcaps'])
def test_size_is_that_of_the_released_model(name: str) -> None:
    with torch.device('meta'):
        model = MODELS.build(read(name).model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e4) == 5573
    assert (model.multi_label_loss is None) == (name == 'gcc_redcaps')


def test_learning_rate_is_that_of_the_released_schedule() -> None:
    config = read('gcc_yfcc')
    epoch = 20
    total, warm = 30 * epoch, 2 * epoch
    warm_up, cosine = config.param_scheduler
    warm_up.end, cosine.T_max = warm, total
    base = config.optim_wrapper.optimizer.lr

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=base)

    ours = optimizer()
    schedulers = [PARAM_SCHEDULERS.build({**step, 'optimizer': ours}) for step in config.param_scheduler]
    theirs = optimizer()
    reference = CosineLRScheduler(
        theirs, t_initial=total, lr_min=4e-5, warmup_t=warm, warmup_lr_init=4e-6, t_in_epochs=False
    )
    reference.step_update(0)
    rates = []
    for step in range(total):
        rates.append((ours.param_groups[0]['lr'], theirs.param_groups[0]['lr']))
        ours.step()
        for scheduler in schedulers:
            scheduler.step()
        reference.step_update(step + 1)
    for step, (rate, expected) in enumerate(rates):
        # During the warm-up the cosine is at work here already, and its steps are few.
        assert rate == pytest.approx(expected, rel=0.03 if step < warm + 2 else 1e-3), step
    assert rates[0][0] == pytest.approx(4e-6)
    assert max(rate for rate, _ in rates) == pytest.approx(base, rel=0.02)
    assert rates[-1][0] == pytest.approx(4e-5, rel=0.01)


@pytest.mark.parametrize('name', ['gcc_yfcc', 'gcc_yfcc_reference'])
def test_what_is_decayed(name: str) -> None:
    config = read(name)
    model = toy_groupvit(multi_label={})
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decayed = {
        names[id(parameter)]: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert set(decayed) == set(names.values())
    assert set(decayed.values()) == {0.0, 0.05}
    special = {
        'logit_scale',
        'multi_label_logit_scale',
        'image_encoder.positions',
        'text_encoder.positional_embedding',
        'text_encoder.token_embedding.weight',
        *(key for key in decayed if key.endswith('group_tokens')),
    }
    assert len(special) == 7  # two stages have tokens
    for key, parameter in model.named_parameters():
        if key in special:
            assert decayed[key] == (0.05 if name.endswith('reference') else 0.0), key
        else:
            assert decayed[key] == (0.05 if parameter.ndim > 1 else 0.0), key


def train(name: str, work_dir: Path, *options: str) -> None:
    assert tool('train', path(name), '--work-dir', work_dir, '--cfg-options', *SMALL_MODEL, *options) == 0


def test_shards_train_the_recipe_and_its_result_is_evaluated(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / 'data', shards=2, samples=6)
    data = [f'train_dataloader.dataset.shards=["{shards}"]', 'train_dataloader.dataset.shuffle_buffer=8']
    nouns = "train_dataloader.dataset.pipeline.1.nouns={'backend': 'vocabulary', 'vocabulary': 'coco'}"
    run = tmp_path / 'run'
    train('gcc_yfcc', run, *data, *SMALL_RUN, nouns)
    state = weights(run)
    assert 'multi_label_logit_scale' in state
    train('gcc_redcaps', tmp_path / 'redcaps', *data, *SMALL_RUN)
    assert 'multi_label_logit_scale' not in weights(tmp_path / 'redcaps')

    names = write_pictures(tmp_path / 'val2017', 5)
    (tmp_path / 'annotations').mkdir()
    content = {
        'images': [{'id': i, 'file_name': name} for i, name in enumerate(names)],
        'annotations': [{'id': i, 'image_id': i, 'caption': f'number {i}'} for i in range(5)],
    }
    (tmp_path / 'annotations' / 'captions_val2017.json').write_text(json.dumps(content))
    options = [
        *SMALL_MODEL,
        'needs=[]',
        f'test_dataloader.dataset.data_root={tmp_path}/',
        'test_dataloader.dataset.pipeline.1.scale=(1000, 32)',
        'test_dataloader.dataset.pipeline.2.crop_size=32',
        'test_dataloader.num_workers=0',
        'test_dataloader.batch_size=2',
    ]
    argv = ('test', path('coco_retrieval'), run / 'latest.pth', '--out', tmp_path / 'metrics.json')
    assert tool(*argv, '--work-dir', run, '--cfg-options', *options) == 0
    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert report['protocol']['images'] == 5
    assert 0 <= report['metrics']['retrieval/R1'] <= 1


COCO = """
_base_ = {base!r}
train_pipeline = [
    dict(type='ovd.TimmAugment', size=32),
    dict(type='ovd.CaptionPrompts', count=3, nouns=dict(backend='vocabulary', vocabulary='coco')),
    dict(type='ovd.PackCaptions')]
data = dict(
    type='ovd.CaptionDataset', data_root={root!r}, ann_file='annotations/captions_train2017.json',
    data_prefix=dict(img_path='train2017'))
train_dataloader = dict(
    _delete_=True, batch_size=8, num_workers=1, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=[dict(type='ovd.LoadImage')] + train_pipeline, **data))
val_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='Resize', scale=(32, 32)),
            dict(type='ovd.CaptionPrompts', count=0),
            dict(type='ovd.PackCaptions')],
        test_mode=True, **data))
val_cfg = dict()
val_evaluator = dict(type='ovd.RetrievalMetric', batch_size=8)
train_cfg = dict(max_iters=6, val_interval=6)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3)]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
needs = []
"""


def test_real_captions_train_and_resume(tmp_path: Path) -> None:
    config = tmp_path / 'coco_mini.py'
    root = str(shared_path('data/coco_mini'))
    config.write_text(COCO.format(base=str(path('gcc_yfcc')), root=root))

    def run(work_dir: Path, *argv: object) -> None:
        options = ('--cfg-options', *SMALL_MODEL)
        assert tool('train', config, '--work-dir', work_dir, *argv, *options) == 0

    run(tmp_path / 'run')
    undisturbed = weights(tmp_path / 'run')
    (tmp_path / 'run' / 'latest.pth').unlink()
    (tmp_path / 'run' / 'latest.pth').symlink_to('iter_3.pth')
    run(tmp_path / 'run', '--resume')
    assert equal(weights(tmp_path / 'run'), undisturbed)
    [log] = list((tmp_path / 'run').glob('*/vis_data/scalars.json'))[:1]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row['loss'] for row in rows if 'loss' in row]
    assert all(math.isfinite(loss) for loss in losses)
    assert any('retrieval/batch_R1' in row for row in rows)
