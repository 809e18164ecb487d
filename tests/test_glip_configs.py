"""Every GLIP config is read, says what it is, and its model trains a step and predicts at toy width."""

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from toy_bert import write_bert
from toy_glip import add_truth, batch, images

from ovd.config import load_config
from ovd.registry import DATASETS, MODELS, TRANSFORMS
from ovd.text.vocabulary import Vocabulary

pytest.importorskip('transformers')

CONFIGS = ROOT / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('glip_*.py'))


def read(name: str) -> Config:
    init_default_scope('mmdet')
    return load_config(CONFIGS / f'{name}.py')


def slim(config: Config, folder: Path) -> Config:
    """The same wiring with thin layers; every option of the config stays."""
    model = config.model
    if model.backbone.type == 'SwinTransformer':
        model.backbone.update(
            embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], window_size=7, init_cfg=None
        )
        model.neck.update(in_channels=[24, 48, 96], out_channels=32)
        model.bbox_head.update(channels=32, num_blocks=2)
        model.text.encoder.update(model=str(write_bert(folder)), pretrained=False)
        if model.bbox_head.get('fusion'):
            model.bbox_head.fusion.update(embed_dims=32, num_heads=4)
            model.bbox_head.text_layer.update(num_heads=4, hidden_channels=48)
    return config


@pytest.mark.parametrize('name', NAMES)
def test_model_trains_a_step_and_predicts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
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
    for part in [*parts, dataset]:
        assert DATASETS.get(part.type) is not None
        for step in part.pipeline:
            if step.type == 'ovd.SampleClassNames':
                step.tokenizer = str(write_bert(tmp_path))
                step.max_tokens = 256
            TRANSFORMS.build(step)


def test_the_tower_of_published_size_is_built() -> None:
    """Parameter counts in millions of the heads, as published."""
    from ovd.models.glip_head import GLIPHead

    for name, millions in (('glip_t_a_o365', 11.70), ('glip_t_b_o365', 92.05), ('glip_l', 122.67)):
        with torch.device('meta'):
            head = GLIPHead(**read(name).model.bbox_head)
        assert sum(parameter.numel() for parameter in head.parameters()) / 1e6 == pytest.approx(
            millions, abs=0.01
        )
