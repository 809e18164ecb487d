"""Every GLIP config is read, says what it is, and its model trains a step and predicts at toy width."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ovd.config import load_config
from ovd.config.collection import collection, find_config
from ovd.datasets.sample_traits import SampleTraits
from ovd.registry import DATASETS, MODELS, TRANSFORMS
from ovd.text.vocabulary import Vocabulary
from ovd.training.checks import check_packing
from tests.toys.bert import write_bert
from tests.toys.glip import add_truth, batch, images, slim

pytest.importorskip('transformers')

NAMES = sorted(name for name in collection() if name.startswith('glip'))


def read(name: str) -> Config:
    init_default_scope('mmdet')
    return load_config(name)


@pytest.mark.parametrize('name', NAMES)
def test_model_trains_a_step_and_predicts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = slim(read(name), tmp_path)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    pictures = images([(64, 96), (64, 64)])
    question = {'text': ['a dog and a cat', ('dog', 'cat')], 'tokens_positive': [[[[0, 5]]], None]}
    data = batch(pictures, **({} if config.model.text.get('offset') else question))
    data = add_truth(data, [[[8, 8, 40, 40]], [[8, 8, 60, 60]]], [[0], [1]])
    loss, _ = model.train().parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    model.eval()
    model.set_vocabulary([f'class {number}' for number in range(60)])
    model.test_cfg['score_thr'] = 0.0
    with torch.no_grad():
        (sample,) = model.test_step(batch(pictures[:1]))
    assert len(sample.pred_instances) > 0
    assert sample.pred_instances.scores.isfinite().all()


@pytest.mark.parametrize('name', NAMES)
def test_words_and_pipelines_fit(name: str, tmp_path: Path) -> None:
    config = read(name)
    dataset = config.test_dataloader.dataset
    if 'vocabulary' in dataset:
        words, asked = (Vocabulary.parse(spec) for spec in (config.model.text.vocabulary, dataset.vocabulary))
        assert words.names == asked.names
    train = config.train_dataloader.dataset
    parts = train.get('datasets', [train])
    captions = tmp_path / 'captions.txt'
    captions.write_text('a dog')
    reader: Any = MODELS.get(config.model.type)
    if config.model.get('contrast') or config.model.get('language'):
        reader = SimpleNamespace(sample_keys=(*reader.sample_keys, 'caption_ranges'))
    for part in [*parts, dataset]:
        while 'dataset' in part:
            part = part.dataset
        assert DATASETS.get(part.type) is not None
        steps = []
        for step in part.pipeline:
            if 'tokenizer' in step:
                step.tokenizer = str(write_bert(tmp_path))
                step.max_tokens = 256
            if 'captions' in step:
                step.captions = captions
            steps.append(TRANSFORMS.build(step))
        built: Any = SampleTraits()
        kind = DATASETS.get(part.type)
        if issubclass(kind, SampleTraits) and not part.get('label_map'):
            built.sample_keys = kind.sample_keys
        built.pipeline = SimpleNamespace(transforms=steps)
        if part is not dataset:
            check_packing(reader, built)


@pytest.mark.parametrize('name', NAMES)
def test_header_says_how_to_run_it(name: str) -> None:
    header = find_config(name).read_text().split('"""')[1]
    assert f'configs/{name}.py' in header


def test_the_sets_of_odinw_are_all_there(tmp_path: Path) -> None:
    sizes = {}
    for name in ('glip_t_odinw13', 'glip_t_odinw13_worded', 'glip_t_odinw35'):
        config = read(name)
        parts = config.test_dataloader.dataset.parts
        assert len({part.data_root for part in parts.values()}) == len(parts)
        sizes[name] = len(parts), sum(part.get('prompts') is not None for part in parts.values())
    assert sizes == {
        'glip_t_odinw13': (13, 0),
        'glip_t_odinw13_worded': (13, 6),
        'glip_t_odinw35': (35, 6),
    }
    config.dump(tmp_path / 'odinw35.py')  # as a run does
    for part in read('glip_t_flickr30k'), read('glip_t_refcoco'), config:
        assert DATASETS.get(part.test_dataloader.dataset.common.type) is not None


def test_the_tower_of_published_size_is_built() -> None:
    """Parameter counts in millions of the heads, as published."""
    from ovd.models.glip.head import GLIPHead

    for name, millions in (('glip_t_a_o365', 11.70), ('glip_t_b_o365', 92.05), ('glip_l', 122.67)):
        with torch.device('meta'):
            head = GLIPHead(**read(name).model.bbox_head)
        assert sum(parameter.numel() for parameter in head.parameters()) / 1e6 == pytest.approx(
            millions, abs=0.01
        )


def test_the_pyramid_drops_blocks_in_training_only(tmp_path: Path) -> None:
    """As the published recipe does."""
    neck = MODELS.build(slim(read('glip_t_a_o365'), tmp_path).model.neck)
    torch.manual_seed(0)
    maps = [
        torch.randn(1, channels, 32 // size, 32 // size) for channels, size in ((24, 1), (48, 2), (96, 4))
    ]
    with torch.no_grad():
        first, second = neck.train()(maps), neck(maps)
        assert not torch.equal(first[0], second[0])
        assert torch.equal(first[2], second[2])
        assert torch.equal(neck.eval()(maps)[0], neck(maps)[0])
        with torch.autocast('cpu', torch.bfloat16):
            assert neck.train()(maps)[0].isfinite().all()


def test_fine_tuning_trains_the_encoder_as_fast_as_the_rest() -> None:
    rates = {
        name: read(name).optim_wrapper.paramwise_cfg.custom_keys['text.model.'].lr_mult
        for name in ('glip_t_a_o365', 'glip_t_coco_captions')
    }
    assert rates == {'glip_t_a_o365': 0.1, 'glip_t_coco_captions': 1.0}
