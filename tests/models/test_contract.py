"""Every registered model and the documented skeletons keep the contract of ``ovd/models/base.py``."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

import ovd.models.registered
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.inference.questions import caption_question
from ovd.models.base import OpenVocabularyModel
from ovd.models.segmentor import OpenVocabularySegmentor
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import ROOT
from tests.toys import glip, groupvit, lseg, vild

DIM = 8
NAMES = ('cat', 'dog', 'bird')
SIZE = 64
MEAN, STD = [127.5] * 3, [64.0] * 3
BOXES = {'type': 'mmdet.DetDataPreprocessor', 'mean': MEAN, 'std': STD}
PIXELS = {'type': 'mmseg.SegDataPreProcessor', 'mean': MEAN, 'std': STD, 'size_divisor': 1}
NOT_A_SYSTEM = {'CLIP'}  # trains an encoder on crops and answers no images
UNTRAINED = {'ClipDetector', 'ClipSegmentor'}  # have no loss; see tests/models/training_free


def vectors(names: tuple[str, ...] = NAMES, encoder: str = '') -> TextEmbeddings:
    return vild.words(names, (), encoder)


def toy_glip(folder: Path, **changes: Any) -> dict[str, Any]:
    pytest.importorskip('transformers')
    return glip.toy_config(folder, text={'encoder': {'model': str(folder)}}, **changes)


@cache
def skeletons() -> dict[str, str]:
    """Classes of the code blocks in docs/add_a_model.md, registered by running them."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/add_a_model.md').read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        namespace = {'__name__': 'add_a_model'}
        exec(compile(block, 'docs/add_a_model.md', 'exec'), namespace)
        names.update(dict.fromkeys(re.findall(r'^class (\w+)', block, re.MULTILINE), block))
    return names


def skeleton(name: str, scope: str, **options: Any) -> dict[str, Any]:
    assert name in skeletons()
    backbone = {'depth': 18, 'base_channels': 8, 'stem_channels': 8, 'norm_cfg': {'type': 'BN'}}
    return {
        'type': f'ovd.{name}',
        'backbone': {'type': f'{scope}.ResNet', **backbone},
        'channels': 64,
        'embed_dim': DIM,
        'data_preprocessor': PIXELS if scope == 'mmseg' else BOXES,
        **options,
    }


# Name of the class -> (scope of the host, config without words).
TOYS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    'GLIP': ('mmdet', toy_glip),
    'GLIPv2': ('mmdet', lambda folder: toy_glip(folder, type='ovd.GLIPv2', contrast={})),
    'GroupViT': (
        'mmseg',
        lambda folder: {**groupvit.toy_config(), 'text': None, 'data_preprocessor': PIXELS},
    ),
    'LSeg': ('mmseg', lambda folder: lseg.model_config()),
    'ViLD': ('mmdet', lambda folder: vild.model_config()),
    'GridDetector': (
        'mmdet',
        lambda folder: skeleton('GridDetector', 'mmdet', stride=32),
    ),
    'PixelSegmentor': (
        'mmseg',
        lambda folder: skeleton('PixelSegmentor', 'mmseg'),
    ),
}


def build(name: str, folder: Path) -> OpenVocabularyModel:
    scope, config = TOYS[name]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config(folder))
    assert isinstance(model, OpenVocabularyModel)
    return model.eval()


def takes_vectors(model: OpenVocabularyModel) -> bool:
    """Whether the toy has no way to encode words itself."""
    return not model.reads_sentences and not model.groups_pixels


def words_for(model: OpenVocabularyModel, names: tuple[str, ...] = NAMES) -> Any:
    return vectors(names) if takes_vectors(model) else list(names)


@pytest.fixture(params=TOYS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> OpenVocabularyModel:
    return build(request.param, tmp_path)


def image_batch(model: OpenVocabularyModel) -> dict[str, Any]:
    kind: Any = SegDataSample if model.answers == 'pixels' else DetDataSample
    shape = (SIZE, SIZE)
    meta = {'img_shape': shape, 'ori_shape': shape, 'scale_factor': (1.0, 1.0), 'batch_input_shape': shape}
    inputs = torch.randint(0, 256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {'inputs': [inputs], 'data_samples': [kind(metainfo=meta)]}


def test_every_registered_system_is_an_open_vocabulary_model_and_has_a_toy() -> None:
    assert ovd.models.registered
    classes = {name: kind for name, kind in MODELS.module_dict.items() if isinstance(kind, type)}
    systems = {
        name
        for name, kind in classes.items()
        if issubclass(kind, BaseModel) and kind.__module__.startswith('ovd.') and name not in NOT_A_SYSTEM
    }
    assert not [name for name in systems if not issubclass(classes[name], OpenVocabularyModel)]
    without = systems - set(TOYS)
    assert without == UNTRAINED, f'give {sorted(without - UNTRAINED)} a toy in this file'
    assert all(not classes[name].needs_checkpoint for name in without)
    assert all(classes[name].answers in ('boxes', 'pixels') for name in without)


def test_traits_go_together(model: OpenVocabularyModel) -> None:
    kind = type(model)
    assert model.answers in ('boxes', 'pixels', 'phrases')
    assert (model.answers == 'pixels') == isinstance(model, OpenVocabularySegmentor)
    assert all(isinstance(key, str) for key in model.sample_keys)
    for method in ('find_phrases', 'readable_phrases'):
        assert (getattr(kind, method) is not getattr(OpenVocabularyModel, method)) == model.reads_sentences
    if not model.reads_sentences:
        with pytest.raises(ValueError, match=kind.__name__):
            caption_question(model, 'a cat')
    if not model.with_background:
        assert model.background_index is None
        with pytest.raises(ValueError, match=kind.__name__):
            model.set_background(False)


def test_without_words_the_error_says_where_to_give_them(model: OpenVocabularyModel) -> None:
    model._text_source = None
    for call in (lambda: model.vocabulary, model.prepare_text):
        with pytest.raises(ValueError, match='vocabulary'):
            call()


def test_words_are_exchanged_and_leave_the_weights_alone(model: OpenVocabularyModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for names in (NAMES, ('horse',), tuple(reversed(NAMES))):
        model.set_vocabulary(words_for(model, names))
        model.prepare_text()
        assert model.vocabulary.names == names
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_encoding_knows_its_words(model: OpenVocabularyModel) -> None:
    if takes_vectors(model):
        pytest.skip('the toy has no text encoder')
    assert model.encode_vocabulary(Vocabulary(NAMES)).vocabulary.names == NAMES


def test_vectors_of_another_encoder_are_refused(model: OpenVocabularyModel) -> None:
    if takes_vectors(model):
        model.set_vocabulary(vectors(encoder='one'))
        model._text_source = None
    with pytest.raises(ValueError, match=r'other|class vectors'):
        model.set_vocabulary(vectors(encoder='other'))


def test_predictions_hold_what_the_model_answers_with(model: OpenVocabularyModel) -> None:
    model.set_vocabulary(words_for(model))
    with torch.no_grad():
        (sample,) = model.test_step(image_batch(model))
    if model.answers == 'pixels':
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, SIZE, SIZE)
        assert int(labels.max()) < len(NAMES) + (model.background_index is not None)
    else:
        found = sample.pred_instances
        assert found.bboxes.shape == (len(found.labels), 4)
        assert not len(found.labels) or int(found.labels.max()) < len(NAMES)


def test_the_description_is_json(model: OpenVocabularyModel) -> None:
    model.set_vocabulary(words_for(model))
    described = model.describe()
    json.dumps(described)
    assert described


@pytest.mark.parametrize('name', ['GridDetector', 'PixelSegmentor'])
def test_the_skeletons_of_the_documentation_train(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path).train()
    model.set_vocabulary(vectors())
    data = image_batch(model)
    (sample,) = data['data_samples']
    if model.answers == 'pixels':
        sample.gt_sem_seg = PixelData(data=torch.ones(1, SIZE, SIZE, dtype=torch.long))
    else:
        boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([2]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        batch = model.data_preprocessor(data, training=True)
        (loss,) = model(**batch, mode='loss').values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < losses[0] / 2
