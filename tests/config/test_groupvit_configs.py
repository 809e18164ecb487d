"""The configs that evaluate GroupViT: words, thresholds, windows, and the size of the model."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample

from ovd.config import load_config
from ovd.models.groupvit.readout import ReferenceReadout, SoftReadout
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary

CASES = {'voc': (20, 0.95), 'context': (59, 0.35), 'coco_object': (80, 0.95)}


def read(name: str) -> Config:
    init_default_scope('mmseg')
    return load_config(f'groupvit_vits16_{name}')


def slim(config: Config) -> Any:
    """The config's model with thin layers."""
    config.model.image_encoder.update(dims=(16, 16, 16), depths=(1, 1, 1), num_heads=(1, 1, 1))
    config.model.image_encoder.update(num_group_tokens=(8, 4, 0), num_output_groups=(8, 4))
    config.model.text_encoder.update(width=16, heads=1, layers=1)
    config.model.update(embed_dim=8, hidden_dim=16)
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


@pytest.mark.parametrize('variant', ['', '_reference'])
@pytest.mark.parametrize('name', CASES)
def test_words_thresholds_and_windows(name: str, variant: str) -> None:
    classes, threshold = CASES[name]
    config = read(name + variant)
    loaders = config.test_dataloader, config.calibration_dataloader
    vocabularies = {Vocabulary.parse(words) for words in (config.model.text.vocabulary,)}
    vocabularies |= {Vocabulary.parse(loader.dataset.vocabulary) for loader in loaders}
    assert len(vocabularies) == 1
    assert len(vocabularies.pop()) == classes
    for loader in loaders:
        assert loader.dataset.background == 'class'
        resize = loader.dataset.pipeline[1]
        assert (resize.type, resize.scale, resize.keep_ratio) == ('Resize', (2048, 448), True)
        assert loader.dataset.pipeline[2].type == 'ovd.LoadSegmentation'  # labels keep their size
    held_out, tested = (loader.dataset for loader in reversed(loaders))
    assert (held_out.get('ann_file'), held_out.data_prefix.img_path) != (
        tested.get('ann_file'),
        tested.data_prefix.img_path,
    )

    model = slim(config)
    assert model.inference.crop_size == (448, 448)
    assert model.inference.stride == (224, 224)
    assert model.with_background
    if variant:
        assert isinstance(model.readout, ReferenceReadout)
        assert (model.readout.threshold, model.readout.class_topk, model.size_divisor) == (threshold, 5, 1)
    else:
        assert isinstance(model.readout, SoftReadout)
        assert model.size_divisor == 16
    samples = [SegDataSample(metainfo={'ori_shape': (30, 40), 'img_shape': (50, 70)})]
    with torch.no_grad():
        labels = model.predict(torch.randn(1, 3, 50, 70), samples)[0].pred_sem_seg.data
    assert labels.shape == (1, 30, 40)
    assert 0 <= int(labels.min()) <= int(labels.max()) <= classes
    assert model.text_embeddings.templates == ('a photo of a {}.',)


def test_prompts_are_those_of_the_released_evaluation() -> None:
    renamed = {'dining table': 'table', 'potted plant': 'plant', 'tv monitor': 'monitor'}
    for name, words in (('voc', renamed), ('context', {'aeroplane': 'airplane', 'potted plant': 'plant'})):
        vocabulary = Vocabulary.parse(read(name).model.text.vocabulary)
        asked = dict(zip(vocabulary.labels, vocabulary.names))
        for label, prompt in words.items():
            assert asked[label] == prompt


def test_words_for_background_go_with_the_classes() -> None:
    config = read('voc')
    config.model.readout.background.names = 'stuff'
    model = slim(config)
    assert model.text_embeddings.embeddings.shape == (20, 8)
    assert model.readout.background.embeddings.shape == (len(Vocabulary.parse('stuff')), 8)


def test_the_model_has_the_size_of_the_released_one() -> None:
    config = read('voc')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 2) == 55.73
