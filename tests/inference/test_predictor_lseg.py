"""The predictor with LSeg and a text tower: answers depend on image and words alone, as in the test tool."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.structures import SegDataSample
from PIL import Image

from ovd.cli.console import run_tool
from ovd.inference.predictor import Predictor
from ovd.registry import MODELS
from tests.helpers import ROOT, write_image
from tests.toys.clip import write_architecture
from tests.toys.lseg import model_config

WORDS = ['cat', 'dog', 'red car', 'grass', 'sky']
LONG = 'a ' + 'very ' * 60 + 'long name of a thing'
SIZES = [(50, 70), (70, 50), (50, 70), (33, 97)]


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny LSeg with random weights, four images of three sizes and their label maps."""
    folder = tmp_path_factory.mktemp('lseg')
    tower = {'model': str(write_architecture(folder / 'tower.json')), 'pretrained': 'random:0'}
    model = model_config(
        head={'embed_dim': 24}, text={'vocabulary': WORDS, 'templates': 'single', 'encoder': tower}
    )
    pipeline = [
        {'type': 'ovd.LoadImage'},
        {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True},
        {'type': 'ovd.LoadSegmentation'},
        {'type': 'PackSegInputs'},
    ]
    data = {
        'type': 'ovd.OpenVocabularySegDataset',
        'data_prefix': {'img_path': str(folder / 'images'), 'seg_map_path': str(folder / 'maps')},
        'vocabulary': WORDS,
        'raw_classes': WORDS,
        'img_suffix': '.png',
        'test_mode': True,
        'pipeline': pipeline,
    }
    sampler = {'type': 'DefaultSampler', 'shuffle': False}
    config = Config(
        {
            'default_scope': 'mmseg',
            'log_level': 'WARNING',
            'model': model,
            'test_dataloader': {'batch_size': 1, 'num_workers': 0, 'sampler': sampler, 'dataset': data},
            'test_evaluator': {'type': 'ovd.SegmentationMetric', 'save_maps': str(folder / 'predicted')},
            'test_cfg': {},
        }
    )
    config.dump(folder / 'toy.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        net = MODELS.build(model).eval()
    with torch.no_grad():
        # Random features have a common direction, which one word would win everywhere: take it out.
        features = net.extract_feat(torch.randn(2, 3, 64, 96))
        net.head.project.bias.copy_(-net.head.project.weight[..., 0, 0] @ features.mean((0, 2, 3)))
    torch.save({'state_dict': net.state_dict()}, folder / 'toy.pth')
    (folder / 'maps').mkdir()
    for index, (height, width) in enumerate(SIZES):
        write_image(folder / 'images' / f'{index}.png', height, width, seed=index)
        Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / 'maps' / f'{index}.png')
    images = [folder / 'images' / f'{index}.png' for index in range(len(SIZES))]
    return {'folder': folder, 'config': folder / 'toy.py', 'checkpoint': folder / 'toy.pth', 'images': images}


@pytest.fixture
def predictor(toy: dict[str, Any]) -> Predictor:
    return Predictor(toy['config'], toy['checkpoint'], device='cpu')


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_labels_are_those_of_the_test_tool(
    predictor: Predictor, toy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metric's PNGs hold what the test loop predicted."""
    arguments = [str(toy['config']), str(toy['checkpoint']), '--work-dir', str(tmp_path)]
    assert run_tool(tool('test').main, arguments) == 0, capsys.readouterr().err
    found = predictor.predict(toy['images'], raw=True)
    assert [answer.size for answer in found] == SIZES
    for answer, image in zip(found, toy['images']):
        (saved,) = (toy['folder'] / 'predicted').rglob(f'{image.stem}.png')
        assert np.array_equal(np.asarray(Image.open(saved)), answer.labels)
        assert len(answer.names) > 1


def test_the_test_tool_takes_batches_of_any_sizes(
    predictor: Predictor, toy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['test_dataloader.batch_size=4', f'test_evaluator.save_maps={tmp_path / "maps"}']
    arguments = [str(toy['config']), str(toy['checkpoint']), '--work-dir', str(tmp_path / 'work')]
    assert run_tool(tool('test').main, [*arguments, '--cfg-options', *options]) == 0, capsys.readouterr().err
    for answer, image in zip(predictor.predict(toy['images'], raw=True), toy['images']):
        (saved,) = (tmp_path / 'maps').rglob(f'{image.stem}.png')
        assert (np.asarray(Image.open(saved)) != answer.labels).mean() < 0.002


def test_few_shot_nets_answer_in_the_frame_of_the_picture(toy: dict[str, Any]) -> None:
    """Their pipeline squeezes pictures to a square, where tests are scored; a question is not scored."""
    config = Config.fromfile(toy['config'])
    pipeline = config.test_dataloader.dataset.pipeline
    pipeline[1:3] = [{'type': 'ovd.LoadSegmentation'}, {'type': 'ovd.SquareResize', 'size': 64}]
    predictor = Predictor(config, toy['checkpoint'], device='cpu')
    found = predictor.predict(toy['images'], raw=True)
    assert [answer.size for answer in found] == SIZES
    assert predictor.prepare(toy['images'][0])[0].shape == (1, 3, 64, 64)
    assert found[0].draw(np.asarray(Image.open(toy['images'][0]))).shape[2] == 3


def test_joined_test_sets_share_their_way_to_prepare_pictures(toy: dict[str, Any]) -> None:
    config = Config.fromfile(toy['config'])
    data = config.test_dataloader.dataset
    common = {'type': data.type, 'pipeline': data.pipeline}
    config.test_dataloader.dataset = {'type': 'ovd.UnifiedSegDataset', 'common': common, 'parts': [{}]}
    (answer,) = Predictor(config, toy['checkpoint'], device='cpu').predict(toy['images'][0], raw=True)
    assert answer.size == SIZES[0]
    del config.test_dataloader.dataset.common['pipeline']
    with pytest.raises(ValueError, match='pipeline'):
        Predictor(config, toy['checkpoint'], device='cpu')


def test_batches_do_not_change_the_answer(predictor: Predictor, toy: dict[str, Any]) -> None:
    alone = predictor.predict(toy['images'], raw=True)
    together = predictor.predict(toy['images'], batch_size=4, raw=True)
    for one, other in zip(alone, together):
        assert (one.labels != other.labels).mean() < 0.002


def scores_of(predictor: Predictor, image: Path) -> np.ndarray:
    inputs, sample = predictor.prepare(image)
    with torch.no_grad():
        (scores,) = predictor.model.inference_scores(inputs, [sample])
        return scores.rows(0, scores.height)[0].numpy()


def test_order_of_words_and_new_words(predictor: Predictor, toy: dict[str, Any]) -> None:
    image = toy['images'][0]
    before, (answer,) = scores_of(predictor, image), predictor.predict(image, raw=True)
    order = [3, 0, 4, 1, 2]
    predictor.set_vocabulary([WORDS[index] for index in order])
    (permuted,) = predictor.predict(image, raw=True)
    np.testing.assert_allclose(scores_of(predictor, image), before[order], atol=1e-5)
    assert (np.array(order)[permuted.labels] != answer.labels).mean() < 0.002
    assert permuted.areas.keys() == answer.areas.keys()
    predictor.set_vocabulary([*WORDS, 'tree', LONG])
    np.testing.assert_allclose(scores_of(predictor, image)[:5], before, atol=1e-5)


@pytest.mark.parametrize('words', [['cat'], [LONG], [LONG, 'cat']], ids=['one', 'long', 'both'])
def test_one_word_and_a_word_longer_than_the_tower(
    predictor: Predictor, toy: dict[str, Any], words: list[str]
) -> None:
    (answer,) = predictor.set_vocabulary(words).predict(toy['images'][0], raw=True)
    assert set(answer.areas) <= set(words)
    assert sum(answer.areas.values()) == 50 * 70
    assert answer.to_dict()['segments'][0]['name'] in words


def test_ten_thousand_words_in_chunks(predictor: Predictor, toy: dict[str, Any]) -> None:
    """The label of every pixel is the best of all words, however the work is split."""
    from ovd.encoders.text_embeddings import TextEmbeddings
    from ovd.text.vocabulary import Vocabulary

    vectors = torch.nn.functional.normalize(torch.randn(10000, 24), dim=1)
    words = Vocabulary([f'thing {index}' for index in range(10000)])
    predictor.set_vocabulary(TextEmbeddings(vectors, words, ('{}',), ''))
    image = toy['images'][3]
    best = scores_of(predictor, image)
    for max_elements in (1 << 16, 1 << 20):
        predictor.model.set_test_cfg({'max_elements': max_elements})
        (answer,) = predictor.predict(image, raw=True)
        assert answer.labels.max() > 255
        chosen = np.take_along_axis(best, answer.labels[None], 0)[0]
        np.testing.assert_allclose(chosen, best.max(0), atol=1e-5)


def test_windows_and_scales_with_and_without_a_budget(predictor: Predictor, toy: dict[str, Any]) -> None:
    """Sums in memory and deferred ones label alike, through the network."""
    mode = {'mode': 'lseg', 'base_size': 70, 'crop_size': 64, 'scales': (0.5, 1.0, 1.5)}
    for test_cfg in (mode, {'mode': 'slide', 'crop_size': 64, 'stride': 48, 'flip': True}):
        found = []
        for limits in ({}, {'eager_elements': 0}, {'eager_elements': 0, 'max_elements': 5000}):
            predictor.model.set_test_cfg({**test_cfg, **limits})
            found.append(predictor.predict(toy['images'][3], raw=True)[0].labels)
        assert all((labels != found[0]).mean() < 0.002 for labels in found[1:])
        assert found[0].shape == SIZES[3]


def test_padding_by_the_host_changes_nothing(predictor: Predictor, toy: dict[str, Any]) -> None:
    model = predictor.model
    image = torch.as_tensor(np.array(Image.open(toy['images'][0]))).permute(2, 0, 1)
    sample = SegDataSample(metainfo={'ori_shape': (50, 70)})
    with torch.no_grad():
        (plain,) = model.test_step({'inputs': [image], 'data_samples': [sample.clone()]})
        model.data_preprocessor.test_cfg = {'size': (96, 128)}
        (padded,) = model.test_step({'inputs': [image], 'data_samples': [sample.clone()]})
    assert torch.equal(plain.pred_sem_seg.data, padded.pred_sem_seg.data)
