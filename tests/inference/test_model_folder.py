"""Model folders: the numbers of config and checkpoint, refused where a byte or a class is not right."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ovd
from ovd.cli.console import run_tool
from ovd.config import load_config
from ovd.inference.model_folders.model_folder import (
    HASHES,
    ModelCard,
    find_model_folder,
    read_model_folder,
    verify_hashes,
    write_hashes,
)
from ovd.inference.model_folders.packing import pack, pack_training
from ovd.inference.model_folders.trusted_config import UnsafeModelFolderError, check
from ovd.inference.predictions import Prediction, Segmentation
from ovd.inference.predictor import Predictor
from tests.helpers import write_image
from tests.inference.test_predictor_vild import KeepDetections, load_tool
from tests.inference.test_predictor_vild import toy as vild_toy  # noqa: F401  (a fixture)
from tests.toys.predictor import write_toy
from tests.toys.small_models import SYSTEMS, WORDS, write_small, write_small_clip

pytest.importorskip('transformers')


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('OVD_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


@pytest.fixture(scope='module')
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed LSeg, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp('packed')
    small = write_small('lseg', folder / 'small')
    return pack(small.config, small.checkpoint, folder / 'lseg', answering={'threshold': 0.4})


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / 'lseg')


def pictures(folder: Path) -> list[Path]:
    sizes = [(50, 70), (70, 50), (64, 96)]
    return [write_image(folder / f'{index}.png', *size, seed=index) for index, size in enumerate(sizes)]


def assert_identical(ours: list[Any], others: list[Any]) -> None:
    """Bit for bit."""
    for one, other in zip(ours, others, strict=True):
        if isinstance(one, Segmentation):
            assert np.array_equal(one.labels, other.labels)
            assert one.vocabulary == other.vocabulary
            continue
        assert isinstance(one, Prediction)
        assert len(one)
        assert one.names == other.names
        for key in ('boxes', 'scores', 'labels', 'masks'):
            assert np.array_equal(getattr(one, key), getattr(other, key)), key


@pytest.mark.parametrize('system', SYSTEMS)
def test_a_folder_answers_as_config_and_checkpoint(system: str, tmp_path: Path) -> None:
    small = write_small(system, tmp_path / 'small')
    images = pictures(tmp_path)
    before = Predictor(small.config, small.checkpoint, device='cpu')
    words = before.vocabulary
    pack(small.config, small.checkpoint, tmp_path / 'packed')
    first = before.predict(images, raw=True)
    second = before.set_vocabulary('ring, cat').predict(images, raw=True)
    phrases = before.ground(images, 'a red star', ['star'], raw=True) if system == 'glip' else []
    shutil.rmtree(tmp_path / 'small')  # the folder needs nothing else
    after = Predictor.from_pretrained(tmp_path / 'packed', device='cpu')
    assert after.vocabulary == words
    assert after.vocabulary.names == tuple(WORDS)
    assert after.name == 'packed'
    assert_identical(after.predict(images, raw=True), first)
    assert_identical(after.set_vocabulary('ring, cat').predict(images, raw=True), second)
    after.save_pretrained(tmp_path / 'again', ModelCard(licence='MIT'))
    again = Predictor.from_pretrained(tmp_path / 'again', device='cpu')
    assert again.vocabulary.names == ('ring', 'cat')
    assert_identical(again.predict(images, raw=True), second)
    assert_identical(
        again.ground(images, 'a red star', ['star'], raw=True) if system == 'glip' else [], phrases
    )


def test_numbers_are_those_of_the_test_tool(
    vild_toy: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    KeepDetections.kept = []
    arguments = [str(vild_toy['config']), str(vild_toy['checkpoint']), '--work-dir', str(tmp_path / 'work')]
    assert run_tool(load_tool('test').main, arguments) == 0, capsys.readouterr().err
    folder = pack(vild_toy['config'], vild_toy['checkpoint'], tmp_path / 'vild')
    found = Predictor.from_pretrained(folder, device='cpu').predict(vild_toy['images'], raw=True)
    for answer, sample in zip(found, KeepDetections.kept, strict=True):
        expected = sample['pred_instances']
        assert np.array_equal(answer.boxes, expected['bboxes'].numpy())
        assert np.array_equal(answer.scores, expected['scores'].numpy())
        assert np.array_equal(answer.masks, expected['masks'].numpy())


def test_what_lies_in_a_folder(folder: Path) -> None:
    assert set(verify_hashes(folder)) >= {
        'model.safetensors', 'config.json', 'vocabulary.json', 'MODEL_CARD.md'
    }  # fmt: skip
    content = json.loads((folder / 'config.json').read_text())
    assert content['name'] == 'lseg'
    assert content['text_encoder']['reference'].startswith('folder:files/clip-')
    assert len(content['text_encoder']['fingerprint']) == 16
    assert content['model']['text']['vocabulary'] == 'folder:vocabulary.json'
    assert 'init_cfg' not in json.dumps(content)
    assert 'lseg_small.py' in (folder / 'MODEL_CARD.md').read_text()
    assert read_model_folder(folder).answering['threshold'] == 0.4
    assert Predictor.from_pretrained(folder, device='cpu').options.threshold == 0.4


def test_answering_beside_a_checkpoint_is_packed(tmp_path: Path) -> None:
    small = write_small('groupvit', tmp_path / 'small')
    (tmp_path / 'small' / 'answering.json').write_text('{"threshold": 0.25}')
    pack(small.config, small.checkpoint, tmp_path / 'packed')
    assert read_model_folder(tmp_path / 'packed').answering['threshold'] == 0.25
    assert json.loads((tmp_path / 'packed' / 'config.json').read_text())['text_encoder']['reference'] is None


def test_a_training_is_packed_into_its_work_directory(tmp_path: Path) -> None:
    small = write_small('groupvit', tmp_path / 'small')
    config = load_config(small.config)
    config.work_dir = str(tmp_path / 'work')
    assert pack_training(config, small.checkpoint, 'my-run') == tmp_path / 'work' / 'model'
    assert pack_training(config, small.checkpoint, 'my-run') == tmp_path / 'work' / 'model'  # of a later run
    assert Predictor.from_pretrained(tmp_path / 'work' / 'model', device='cpu').name == 'my-run'
    config.model = {'type': 'mmdet.RPN'}
    assert pack_training(config, small.checkpoint, 'proposals') is None


def test_a_card_tells_what_is_known() -> None:
    card = ModelCard('A model.', 'somewhere', 'MIT', 'val2017', {'box AP': 43.0}, ('a note',))
    text = card.text('glip-t-a')
    for part in ('# glip-t-a', 'A model.', 'somewhere', 'MIT', 'val2017', '| box AP | 43.0 |', '- a note'):
        assert part in text
    assert 'not stated' in ModelCard().text('x')


def test_an_existing_folder_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    small = write_small('groupvit', tmp_path / 'small')
    with pytest.raises(FileExistsError, match='lseg exists'):
        pack(small.config, small.checkpoint, folder)
    assert read_model_folder(folder).model['type'] == 'ovd.LSeg'
    pack(small.config, small.checkpoint, folder, replace=True)
    assert read_model_folder(folder).model['type'] == 'ovd.GroupViT'
    (tmp_path / 'other').mkdir()
    with pytest.raises(FileExistsError, match='other exists'):
        pack(small.config, small.checkpoint, tmp_path / 'other', replace=True)


def test_nothing_is_left_of_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_small('groupvit', tmp_path / 'small')

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('ovd.checkpoints.writing.save_tensors', full)
    (tmp_path / 'out').mkdir()
    with pytest.raises(OSError, match='No space'):
        pack(small.config, small.checkpoint, tmp_path / 'out' / 'packed')
    assert list((tmp_path / 'out').iterdir()) == []


# --- by name --------------------------------------------------------------------------------------------


def test_models_are_found_by_name(folder: Path, home: Path) -> None:
    home.mkdir()
    shutil.copytree(folder, home / 'my-lseg')
    assert find_model_folder('my-lseg') == home / 'my-lseg'
    assert ovd.load('my-lseg', device='cpu').name == 'lseg'
    assert find_model_folder(folder) == folder
    with pytest.raises(FileNotFoundError, match='ovd fetch groupvit-gcc-yfcc'):
        find_model_folder('groupvit-gcc-yfcc')
    with pytest.raises(FileNotFoundError, match='did you mean groupvit-gcc-yfcc'):
        Predictor.from_pretrained('groupvit-gcc-yfc')
    with pytest.raises(FileNotFoundError, match='ovd models'):
        find_model_folder('../nothing')


def test_a_text_encoder_under_the_home_is_referred_to(tmp_path: Path, home: Path) -> None:
    clip = write_small_clip(home / 'tiny-clip')
    write_hashes(clip)
    small = write_small('lseg', tmp_path / 'small', clip)
    packed = pack(small.config, small.checkpoint, home / 'lseg')
    content = json.loads((packed / 'config.json').read_text())
    assert content['text_encoder']['reference'] == 'model:tiny-clip'
    assert not (packed / 'files').exists()
    images = pictures(tmp_path)
    before = Predictor(small.config, small.checkpoint, device='cpu').predict(images, raw=True)
    assert_identical(Predictor.from_pretrained('lseg', device='cpu').predict(images, raw=True), before)
    with pytest.raises(FileNotFoundError, match='encoder is named in a config'):
        ovd.load('tiny-clip')
    (clip / 'open_clip_config.json').write_text('{}')
    with pytest.raises(ValueError, match='model:tiny-clip, which is not the one'):
        read_model_folder(packed)
    shutil.rmtree(clip)
    with pytest.raises(FileNotFoundError, match='ovd fetch tiny-clip'):
        read_model_folder(packed)


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'vocabulary.json', 'MODEL_CARD.md'])
def test_a_changed_file_is_refused_by_name(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace('.', r'\.')) as caught:
        Predictor.from_pretrained(folder)
    assert '\n' not in str(caught.value)


def test_a_missing_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / 'vocabulary.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'vocabulary\.json is missing'):
        read_model_folder(folder)
    (folder / HASHES).unlink()
    with pytest.raises(FileNotFoundError, match=f'no {HASHES}'):
        read_model_folder(folder)
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
        read_model_folder(tmp_path / 'nowhere')


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the settings, as an attacker would: with fitting hashes."""
    content = json.loads((folder / 'config.json').read_text())
    for path, value in changes.items():
        target = content
        *parents, last = path.split('__')
        for key in parents:
            target = target[int(key)] if key.isdecimal() else target[key]
        target[last] = value
    (folder / 'config.json').write_text(json.dumps(content))
    write_hashes(folder)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model__type': 'os.system'}, "type is 'os.system'"),
        ({'model__type': 'ovd.files.model_home'}, 'type is'),
        ({'model__type': 'ovd.Nothing'}, "type is 'ovd.Nothing'"),
        ({'model__type': 'LazyObject'}, "type is 'LazyObject'"),
        ({'model__neck__type': ['ovd.DPTFusion']}, 'type is'),
        ({'model__neck__norm_cfg': {'type': "__import__('os').getcwd"}}, 'norm_cfg.type'),
        ({'pipeline__0__type': 'mmengine.Evil'}, "type is 'mmengine.Evil'"),
        ({'model__init_cfg': {'type': 'BN', 'checkpoint': 'x'}}, 'init_cfg is not allowed'),
        ({'model___scope_': 'evil'}, '_scope_ is not allowed'),
        ({'model__backbone__vit__options': {'checkpoint_path': 'a'}}, 'checkpoint_path is not allowed'),
        ({'model__backbone__vit__model': 'hf-hub:someone/vit'}, 'outside the folder'),
        ({'model__text__encoder': {'model': '/etc'}}, 'outside the folder'),
        ({'model__text__encoder': {'model': 'data/clip'}}, 'outside the folder'),
        ({'model__text__encoder': {'model': 'https://example.org/clip'}}, 'outside the folder'),
        ({'model__text__encoder': {'model': 'RN50', 'pretrained': 'openai'}}, 'would be fetched'),
        ({'model__text__encoder': {'model': 'RN50', 'pretrained': True}}, 'would fetch'),
        ({'model__text__encoder': {'model': 'folder:../../secret'}}, 'leads out of the folder'),
        ({'model__text__encoder': {'model': 'folder:files/unlisted'}}, 'does not list'),
        ({'model__text__encoder': {'model': 'model:../x'}}, 'leads out of the folder'),
        ({'model__text__vocabulary': 'words.txt'}, 'a file outside the folder'),
        ({'references': {'folder:x': 'y'}}, 'expected asset: or model:'),
        ({'references': {'model:absent': 'y'}}, 'ovd fetch absent'),
        ({'default_scope': 'evil'}, 'default_scope'),
        ({'version': 2}, 'expected'),
        ({'answering': 3}, 'answering'),
    ],
)
def test_settings_that_ask_for_more_than_data_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Predictor.from_pretrained(folder, device='cpu')
    assert '\n' not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / 'secret.json'
    shutil.copyfile(folder / 'vocabulary.json', secret)
    (folder / 'vocabulary.json').unlink()
    (folder / 'vocabulary.json').symlink_to(secret)
    with pytest.raises(UnsafeModelFolderError, match=r'vocabulary\.json. leads out'):
        read_model_folder(folder)


@pytest.mark.parametrize('text', ['{', '[]', '[' * 100_000, '{"format": "x"}'])
def test_damaged_json_is_one_line(folder: Path, text: str) -> None:
    (folder / 'config.json').write_text(text)
    write_hashes(folder)
    with pytest.raises(ValueError, match=r'config\.json') as caught:
        read_model_folder(folder)
    assert '\n' not in str(caught.value)


def test_classes_can_be_added_to_the_list(tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    pack(config, checkpoint, tmp_path / 'toy')
    with pytest.raises(UnsafeModelFolderError, match=r"'ovd\.ToyDetector'.*allow"):
        read_model_folder(tmp_path / 'toy')
    predictor = Predictor.from_pretrained(tmp_path / 'toy', device='cpu', allow=['ovd.ToyDetector'])
    assert len(predictor.predict(pictures(tmp_path)[0], raw=True)[0]) == 2


def test_values_that_json_lacks_are_refused_by_key(tmp_path: Path) -> None:
    small = write_small('groupvit', tmp_path / 'small')
    predictor = Predictor(small.config, small.checkpoint, device='cpu')
    predictor.config.model.readout.background = float('inf')
    with pytest.raises(ValueError, match='finite'):
        predictor.save_pretrained(tmp_path / 'packed')
    predictor.config.model.readout = {'type': 'ovd.SoftReadout', 'names': {3: 'a'}}
    with pytest.raises(ValueError, match=r'model\.readout\.names has the key 3'):
        predictor.save_pretrained(tmp_path / 'packed')
    predictor.config.model.readout = {'type': 'ovd.SoftReadout', 'background': {'thresholds': 'gone.json'}}
    with pytest.raises(FileNotFoundError, match=r'thresholds names gone\.json'):
        predictor.save_pretrained(tmp_path / 'packed')
    assert not (tmp_path / 'packed').exists()


def test_harmless_texts_pass() -> None:
    harmless = {
        'templates': ['a photo of a {}.', 'and/or'],
        'vocabulary': ['cat', 'dog/wolf'],
        'model': 'ViT-B-32-quickgelu',
        'pretrained': 'random:0',
        'type': 'mmdet.ResNet',
    }
    check(harmless, lambda name: False)
