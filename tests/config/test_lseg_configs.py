"""Every LSeg config is read, says what it is, and its model trains a step and predicts at toy width."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import init_default_scope
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm

from ovd.cli.console import parse_value
from ovd.config import check_needs, load_config
from ovd.config.collection import collection, find_config
from ovd.models.lseg.pixel_text import PixelTextHead
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary
from ovd.training.runner import build_runner
from tests.helpers import write_image
from tests.toys.clip import RESNET, write_architecture
from tests.toys.lseg import batch, losses_of, predictions_of, vit, words

LSEG = sorted(name for name in collection() if name.startswith('lseg_'))
PAIRS = [name for name in LSEG if name.endswith(('pascal5i', 'coco20i', 'fss1000'))]
TRANSFER = [name for name in LSEG if '_to_' in name]


def read(name: str) -> Config:
    init_default_scope('mmseg')
    return load_config(name)


def slim(model: ConfigDict, folder: Path) -> ConfigDict:
    """The same wiring with thin layers; every option of the config stays."""
    widths = (8, 12, 16, 24)
    backbone, head = model.backbone, model.head
    if backbone.type == 'ovd.DPTViT':
        patch = int(backbone.vit.model.split('patch')[1].split('_')[0])
        backbone.vit.options = vit(patch, 16, backbone.hooks[-1] + 1, 2)['options']
        backbone.channels = widths
    elif backbone.type == 'ovd.ResNetPyramid':
        backbone.options = {'channels': (8, 8, 8, 8), 'layers': (1, 1, 1, 1)}
        widths = (32,) * 4  # bottlenecks
    elif backbone.type == 'ovd.ClipResNet':
        widths = tuple(RESNET['width'] * factor for factor in (4, 8, 16, 32))
        backbone.update(model=str(write_architecture(folder / 'clip.json')), pretrained='random:0')
    if 'in_channels' in model.neck:
        model.neck.update(in_channels=list(widths), out_channels=16)
    if model.neck.get('norm_cfg'):
        model.neck.norm_cfg = {'type': 'BN'}
    head.update(in_channels=16, embed_dim=8)
    return model


def vocabulary_of(config: Config) -> Vocabulary:
    """The words of a config; FSS-1000's come with its data."""
    spec = config.model.text.vocabulary
    if isinstance(spec, str) and spec.startswith('data/'):
        return Vocabulary([f'thing {index}' for index in range(1000)])
    return Vocabulary.parse(spec)


@pytest.mark.parametrize('name', LSEG)
def test_model_trains_a_step_and_predicts(name: str, tmp_path: Path) -> None:
    config = read(name)
    vocabulary = vocabulary_of(config)
    config.model.pop('text')
    model = MODELS.build(slim(config.model, tmp_path))
    other = [] if model.pair_with is None else [model.pair_with]
    model.set_vocabulary(words([*vocabulary.names, *other]))
    classes = len(vocabulary) + model.with_background
    data = batch(2, (64, 64), classes, pairs=bool(other))
    loss = losses_of(model.train(), data)['loss_seg']
    loss.backward()
    assert loss.isfinite()
    assert model.head.project.weight.grad.any()
    # Several processes wait for the gradients of all parameters, unless told to look for unused ones.
    unused = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert bool(unused) == config.get('find_unused_parameters', False), unused
    assert bool(other) == (name in PAIRS)
    if model.inference.__class__.__name__ == 'LSegMultiScale':
        model.set_test_cfg({'mode': 'lseg', 'base_size': 70, 'crop_size': 64, 'scales': (0.5, 1.0)})
    (found,) = predictions_of(model, batch(1, (50, 60), classes, pairs=bool(other)))
    labels = found.pred_sem_seg.data
    assert labels.shape == (1, 50, 60)
    assert 0 <= labels.min() <= labels.max() < (2 if other else classes)


@pytest.mark.parametrize('name', LSEG)
def test_data_and_model_share_their_words_and_background(name: str) -> None:
    config = read(name)
    background = config.model.head.get('with_background', False)
    for section in ('train', 'val', 'test'):
        if (name in TRANSFER and section != 'test') or f'{section}_dataloader' not in config:
            continue
        dataset = config[f'{section}_dataloader'].dataset
        if 'fss1000' not in name:  # its words are the names of its folders
            assert Vocabulary.parse(dataset.vocabulary) == vocabulary_of(config)
        assert (dataset.get('background', 'none') == 'class') == background
        pipeline = dataset.get('pipeline') or dataset.common.pipeline
        assert [step.type for step in pipeline][1] == 'ovd.LoadSegmentation'


@pytest.mark.parametrize('name', [name for name in LSEG if 'custom_keys' in str(read(name).optim_wrapper)])
def test_decoder_and_head_learn_ten_times_faster_and_nothing_else(name: str, tmp_path: Path) -> None:
    from mmengine.optim import build_optim_wrapper

    config = read(name)
    config.model.pop('text')
    model = MODELS.build(slim(config.model, tmp_path))
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    base = config.optim_wrapper.optimizer.lr
    for parameter_name, parameter in model.named_parameters():
        expected = base if parameter_name.startswith('backbone.') else 10 * base
        assert rates[id(parameter)] == pytest.approx(expected)


@pytest.mark.parametrize('name', PAIRS)
def test_few_shot_training_keeps_what_it_validates(name: str) -> None:
    config = read(name)
    checkpoint, loop = config.default_hooks.checkpoint, config.train_cfg
    assert checkpoint.interval == loop.val_interval
    assert checkpoint.max_keep_ckpts * checkpoint.interval == loop.max_iters


def test_on_several_gpus_all_norms_of_the_resnet_are_synchronised(tmp_path: Path) -> None:
    config = read('lseg_r101_pascal5i')
    config.model.pop('text')
    model = MODELS.build(slim(config.model, tmp_path)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.extract_feat(image)
        model = convert_sync_batchnorm(model, config.sync_bn).eval()
        torch.testing.assert_close(model.extract_feat(image), before)
    norms = {type(module) for module in model.modules() if isinstance(module, _BatchNorm)}
    assert norms == {torch.nn.SyncBatchNorm}


@pytest.mark.parametrize('name', PAIRS)
def test_a_fold_is_one_number(name: str) -> None:
    config = read(name)
    if 'fss1000' in name:
        assert 'fold' not in config
        return
    datasets = [config[f'{section}_dataloader'].dataset for section in ('train', 'val', 'test')]
    assert [dataset.fold for dataset in datasets] == [config.fold] * 3


def write_voc(folder: Path, labels: list[tuple[int, int]]) -> None:
    """Pictures with two classes each, in the layout of PASCAL VOC 2012."""
    stems = [f'2007_{index}' for index in range(len(labels))]
    for index, (stem, (first, second)) in enumerate(zip(stems, labels)):
        write_image(folder / f'JPEGImages/{stem}.jpg', 60, 80, index)
        ids = np.zeros((60, 80), np.uint8)
        ids[5:50, 5:35], ids[5:50, 40:70], ids[50:52] = first, second, 255
        for maps in ('SegmentationClassAug', 'SegmentationClass'):
            (folder / maps).mkdir(exist_ok=True)
            Image.fromarray(ids).save(folder / maps / f'{stem}.png')
    (folder / 'ImageSets/Segmentation').mkdir(parents=True)
    for part in ('trainaug', 'val'):
        (folder / f'ImageSets/Segmentation/{part}.txt').write_text('\n'.join(stems))


def test_a_zero_shot_leaf_trains_and_tests_on_its_data(tmp_path: Path, monkeypatch: Any) -> None:
    config = read('lseg_r101_pascal5i')
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / config.data_root, [(1, 6), (2, 6), (3, 7), (4, 7), (5, 8), (8, 1)])
    tower = str(write_architecture(tmp_path / 'words.json', embed_dim=8))
    slim(config.model, tmp_path)
    config.model.text.encoder = {'model': tower, 'pretrained': 'random:0'}
    config.model.backbone.init_cfg = None
    config.train_dataloader.batch_size = 2
    for section in ('train', 'val', 'test'):
        loader = config[f'{section}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        next(step for step in loader.dataset.pipeline if step.type == 'ovd.SquareResize').size = 64
        if section != 'train':
            loader.dataset.num_episodes = 4
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.work_dir = str(tmp_path / 'work')
    runner = build_runner(config)
    runner.train()
    metrics = runner.test()
    assert 0 <= metrics['few_shot/mIoU'] <= 1
    assert 0 < metrics['few_shot/FB_IoU'] <= 1


@pytest.mark.parametrize('name', LSEG)
def test_missing_data_are_named_with_the_remedy(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    config = read(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'data/.*(make_shapes|see data/README.md)'):
        check_needs(config)


@pytest.mark.parametrize('name', LSEG)
def test_header_says_how_to_run_it(name: str) -> None:
    header = find_config(name).read_text().split('"""')[1]
    assert f'configs/{name}.py' in header
    assert 'python tools/' in header or 'torchrun' in header


@pytest.mark.parametrize('name', LSEG)
def test_options_of_the_header_work(name: str) -> None:
    """What follows --cfg-options in a header can be typed; the head's options make a head."""
    lines = iter(find_config(name).read_text().split('"""')[1].splitlines())
    options = dict(
        word.split('=', 1)
        for line in lines
        if '--cfg-options' in line
        for word in line.split('--cfg-options')[1].rstrip('.').split()
    )
    init_default_scope('mmseg')
    config = load_config(name, {key: parse_value(value) for key, value in options.items()})
    assert name != 'lseg_vitb32_ade20k' or len(options) == 2
    block = PixelTextHead(**config.model.head).regularization
    assert (block is not None) == ('model.head.regularization.kind' in options)


def test_real_size_vit_keeps_the_published_sizes() -> None:
    model = read('lseg_vitl16_ade20k').model
    init_default_scope('mmseg')
    with torch.device('meta'):
        built = MODELS.build(model)
        levels = built.backbone(torch.empty(1, 3, 480, 480))
        features = built.neck(levels)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (256, 120, 120),
        (512, 60, 60),
        (1024, 30, 30),
        (1024, 15, 15),
    ]
    assert tuple(features.shape) == (1, 256, 240, 240)
