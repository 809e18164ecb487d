"""Class vectors: averaging by hand, files, cache, import of published matrices, the tool."""

import importlib.util
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from ovd.cli.console import run_tool
from ovd.encoders.loading import build_clip, save_clip
from ovd.encoders.text_embeddings import TextEmbeddings, default_cache_dir
from ovd.encoders.text_encoder import TextEncoder
from ovd.text.vocabulary import Vocabulary
from tests.helpers import ROOT, shared_path
from tests.toys.clip import write_architecture


class CountingEncoder:
    """Text -> (number of a, number of b): vectors that can be averaged by hand."""

    fingerprint = 'f' * 16
    embed_dim = 2
    dtype = torch.float32

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        self.texts += texts
        return torch.tensor([[float(text.count('a')), float(text.count('b'))] for text in texts])

    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def tiny_folder(folder: Path, seed: int = 1) -> Path:
    clip = build_clip(write_architecture(folder.parent / 'arch.json'), f'random:{seed}')
    save_clip(folder, clip.model, clip.config)
    return folder


def unit(*values: float) -> list[float]:
    return [value / math.hypot(*values) for value in values]


# --- build --------------------------------------------------------------------------------------------------


def test_templates_are_normalised_before_they_are_averaged() -> None:
    built = TextEmbeddings.build(['aaa', 'b'], ['{}', '{}b'], CountingEncoder())
    first, second = unit(3, 0), unit(3, 1)
    wanted = [unit(first[0] + second[0], first[1] + second[1]), [0.0, 1.0]]
    torch.testing.assert_close(built.embeddings, torch.tensor(wanted))
    assert built.templates == ('{}', '{}b')
    assert built.encoder_fingerprint == 'f' * 16
    assert (len(built), built.embed_dim) == (2, 2)


def test_synonyms_weigh_equally_whatever_their_prompts() -> None:
    built = TextEmbeddings.build([['aaa', 'b']], ['{}', '{}b'], CountingEncoder())
    first, second = unit(3, 0), unit(3, 1)
    name, synonym = unit(first[0] + second[0], first[1] + second[1]), [0.0, 1.0]
    wanted = unit(name[0] + synonym[0], name[1] + synonym[1])
    torch.testing.assert_close(built.embeddings, torch.tensor([wanted]))


def test_one_class() -> None:
    built = TextEmbeddings.build('ab', 'name', CountingEncoder())
    torch.testing.assert_close(built.embeddings, torch.tensor([unit(1, 1)]))


def test_many_prompts_are_encoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ovd.encoders.text_embeddings._CHUNK', 130)
    words = ['a' * (k + 1) + 'b' for k in range(5)]
    steps: list[tuple[int, int]] = []
    built = TextEmbeddings.build(
        words, 'vild63', CountingEncoder(), on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(126, 315), (252, 315), (315, 315)]
    alone = TextEmbeddings.build(words[3], 'vild63', CountingEncoder())
    torch.testing.assert_close(built.embeddings[3:4], alone.embeddings)


def test_equals_the_classifier_of_open_clip(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / 'clip')
    model = open_clip.create_model(f'local-dir:{folder}').eval()
    tokenizer = open_clip.get_tokenizer(f'local-dir:{folder}')
    names = ['cat', 'traffic light', 'dog']
    wanted = open_clip.build_zero_shot_classifier(
        model, tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=None
    )
    built = TextEmbeddings.build(names, 'clip80', TextEncoder(folder), batch_size=7)
    torch.testing.assert_close(built.embeddings, wanted.T, atol=2e-6, rtol=0)
    assert (built.embeddings[0] @ built.embeddings[1]) < 0.9999


def test_order_of_the_classes_only_moves_rows(tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_folder(tmp_path / 'clip'))
    built = TextEmbeddings.build(['cat', 'red dog', 'bird'], 'clip7', encoder)
    moved = TextEmbeddings.build(['bird', 'fish', 'cat', 'red dog'], 'clip7', encoder)
    torch.testing.assert_close(moved.embeddings[[2, 3, 0]], built.embeddings, atol=1e-6, rtol=0)


def test_duplicates_and_bad_templates_are_refused() -> None:
    with pytest.raises(ValueError, match="class name 1 'cat' repeats"):
        TextEmbeddings.build(['cat', 'cat'], 'name', CountingEncoder())
    with pytest.raises(ValueError, match="'a photo' must hold exactly one"):
        TextEmbeddings.build(['cat'], ['a photo'], CountingEncoder())


# --- cache --------------------------------------------------------------------------------------------------


def test_cache_answers_the_second_time_and_knows_what_matters(tmp_path: Path) -> None:
    encoder = CountingEncoder()

    def texts_needed(words: object, templates: object) -> int:
        before = len(encoder.texts)
        TextEmbeddings.build(words, templates, encoder, cache_dir=tmp_path)  # type: ignore[arg-type]
        return len(encoder.texts) - before

    assert texts_needed(['a', 'b'], ['{}', 'one {}']) == 4
    assert texts_needed(['a', 'b'], ['{}', 'one {}']) == 0
    assert texts_needed({'names': 'a, b', 'novel': 'b'}, ['{}', 'one {}']) == 0
    assert texts_needed(['b', 'a'], ['{}', 'one {}']) == 4
    assert texts_needed([['a', 'b'], 'b'], ['{}', 'one {}']) == 6
    assert texts_needed(['a', 'b'], ['{}']) == 2
    encoder.fingerprint = '0' * 16
    assert texts_needed(['a', 'b'], ['{}', 'one {}']) == 4
    encoder.dtype = torch.float16
    assert texts_needed(['a', 'b'], ['{}', 'one {}']) == 4


def test_cached_vectors_come_with_the_words_of_the_caller() -> None:
    plain = TextEmbeddings.build(['a', 'b'], 'name', CountingEncoder())
    split = TextEmbeddings.build({'names': 'a, b', 'novel': 'b'}, 'name', CountingEncoder())
    assert torch.equal(plain.embeddings, split.embeddings)
    assert split.vocabulary.novel_names == ('b',)
    assert len(list(default_cache_dir().rglob('*.safetensors'))) == 1


def test_damaged_or_unwritable_cache_only_costs_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = TextEmbeddings.build(['a', 'b'], 'name', CountingEncoder(), cache_dir=tmp_path)
    (kept,) = tmp_path.rglob('*.safetensors')
    kept.write_bytes(kept.read_bytes()[:20])
    with caplog.at_level(logging.WARNING):
        again = TextEmbeddings.build(['a', 'b'], 'name', CountingEncoder(), cache_dir=tmp_path)
        assert torch.equal(again.embeddings, built.embeddings)
        assert 'cache is damaged' in caplog.text
        blocked = tmp_path / 'file'
        blocked.write_text('')
        TextEmbeddings.build(['a', 'b'], 'name', CountingEncoder(), cache_dir=blocked)
        assert 'are not cached' in caplog.text


# --- files --------------------------------------------------------------------------------------------------


def test_file_keeps_everything(tmp_path: Path) -> None:
    words = Vocabulary.parse({'names': [['sofa', 'couch'], 'Straße'], 'novel': 'Straße'})
    built = TextEmbeddings.build(words, 'vild63', TextEncoder(tiny_folder(tmp_path / 'clip')))
    path = tmp_path / 'words.vocab.safetensors'
    built.save(path)
    loaded = TextEmbeddings.load(path, expected_fingerprint=built.encoder_fingerprint)
    assert torch.equal(loaded.embeddings, built.embeddings)
    assert loaded.vocabulary == words
    assert loaded.templates == built.templates
    assert loaded.encoder_fingerprint == built.encoder_fingerprint
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'words.vocab.safetensors'
    TextEmbeddings.build(['a', 'b'], 'name', CountingEncoder()).save(path)
    with pytest.raises(
        ValueError, match=r'words\.vocab.* made with encoder f{16}, but the model uses encoder 1234'
    ):
        TextEmbeddings.load(path, expected_fingerprint='1234')
    TextEmbeddings(torch.eye(2), Vocabulary(['a', 'b']), (), '').save(path)
    assert TextEmbeddings.load(path).encoder_fingerprint == ''
    with pytest.raises(ValueError, match='made with an unknown encoder'):
        TextEmbeddings.load(path, expected_fingerprint='1234')


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'words.vocab.safetensors'
    with pytest.raises(FileNotFoundError, match=r'words\.vocab\.safetensors does not exist'):
        TextEmbeddings.load(path)
    folder = tiny_folder(tmp_path / 'clip')
    with pytest.raises(ValueError, match='holds no text embeddings'):
        TextEmbeddings.load(folder / 'open_clip_model.safetensors')
    TextEmbeddings.build(['a', 'b'], 'name', CountingEncoder()).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r'words\.vocab\.safetensors'):
        TextEmbeddings.load(path)
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(ValueError, match="format version '9', expected '1'"):
        TextEmbeddings.load(path)
    path.write_bytes(whole[:-4] + np.float32(3).tobytes())
    with pytest.raises(ValueError, match="is damaged: the text embedding of class 1 'b' has length 3"):
        TextEmbeddings.load(path)


@pytest.mark.parametrize(
    ('matrix', 'message'),
    [
        (torch.eye(3), r'2 classes came with embeddings of shape \[3, 3\]'),
        (torch.eye(2).half(), 'must be float32, got torch.float16'),
        (torch.tensor([[1.0, 0], [0, 0]]), "class 1 'b' has length 0, expected 1"),
        (torch.tensor([[float('nan'), 0], [0, 1]]), "class 0 'a' has length nan"),
    ],
)
def test_vectors_must_fit_the_words_and_have_unit_length(matrix: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEmbeddings(matrix, Vocabulary(['a', 'b']), (), '')


# --- published matrices -------------------------------------------------------------------------------------


def test_matrix_of_any_length_and_orientation(tmp_path: Path) -> None:
    rows = np.array([[3.0, 4, 0], [0, 0, 2]], dtype=np.float16)
    wanted = torch.tensor([[0.6, 0.8, 0], [0, 0, 1]])
    np.save(tmp_path / 'rows.npy', rows)
    np.save(tmp_path / 'columns.npy', rows.T)
    for name in ('rows', 'columns'):
        imported = TextEmbeddings.from_matrix(tmp_path / f'{name}.npy', 'cat, dog')
        torch.testing.assert_close(imported.embeddings, wanted)
        assert imported.vocabulary.names == ('cat', 'dog')
    known = TextEmbeddings.from_matrix(tmp_path / 'rows.npy', 'cat, dog', 'a', 'abcd')
    assert (known.templates, known.encoder_fingerprint) == (('a {}',), 'abcd')
    np.save(tmp_path / 'one.npy', rows[:1])
    assert len(TextEmbeddings.from_matrix(tmp_path / 'one.npy', 'cat')) == 1


def test_square_matrix_needs_an_orientation(tmp_path: Path) -> None:
    np.save(tmp_path / 'm.npy', np.array([[1.0, 1], [0, 1]]))
    with pytest.raises(ValueError, match=r"\[2, 2\], 2 classes: say orientation='rows' or 'columns'"):
        TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat, dog')
    columns = TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat, dog', orientation='columns')
    torch.testing.assert_close(columns.embeddings, torch.tensor([[1, 0], unit(1, 1)]))
    rows = TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat, dog', orientation='rows')
    torch.testing.assert_close(rows.embeddings, torch.tensor([unit(1, 1), [0, 1]]))
    with pytest.raises(ValueError, match="orientation 'up'"):
        TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat, dog', orientation='up')


@pytest.mark.parametrize(
    ('matrix', 'message'),
    [
        (np.zeros((3, 4)), r'is \[3, 4\], which does not fit 2 class names'),
        (np.array([[1.0, 0, 0], [0, 0, 0]]), "class 1 'dog' has a vector of length 0"),
        (np.array([[1.0, 0, 0], [np.inf, 0, 0]]), "class 1 'dog' has a vector of length inf"),
        (np.zeros((2, 1, 4)), r'holds float64 \[2, 1, 4\], expected one matrix'),
        (np.array([['a', 'b', 'c']] * 2), r'holds <U1 \[2, 3\]'),
        (np.array([[1, None, 3]] * 2), r'is no \.npy file of numbers'),
    ],
)
def test_bad_matrices_are_refused(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    np.save(tmp_path / 'm.npy', matrix)
    with pytest.raises(ValueError, match=message):
        TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat, dog')


def test_files_that_are_no_matrix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'm\.npy does not exist'):
        TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat')
    (tmp_path / 'm.npy').write_bytes(b'')
    with pytest.raises(ValueError, match=r'm\.npy is no \.npy file'):
        TextEmbeddings.from_matrix(tmp_path / 'm.npy', 'cat')
    np.savez(tmp_path / 'm.npz', a=np.zeros((1, 2)))
    with pytest.raises(ValueError, match='holds an archive'):
        TextEmbeddings.from_matrix(tmp_path / 'm.npz', 'cat')


def test_real_matrices_of_coco_and_lvis_agree() -> None:
    coco = TextEmbeddings.from_matrix(shared_path('data/clip_text/coco_clip_a+cname.npy'), 'coco', 'a')
    lvis = TextEmbeddings.from_matrix(shared_path('data/clip_text/lvis_v1_clip_a+cname.npy'), 'lvis', 'a')
    assert coco.embeddings.shape == (80, 512)
    assert lvis.embeddings.shape == (1203, 512)
    shared = [name for name in coco.vocabulary if name.replace(' ', '_') in lvis.vocabulary.names]
    assert len(shared) >= 55
    rows = lvis.embeddings[[lvis.vocabulary.index(name.replace(' ', '_')) for name in shared]]
    cosines = rows @ coco.embeddings.T
    assert cosines.argmax(1).tolist() == [coco.vocabulary.index(name) for name in shared]
    assert cosines.max(1).values.min() > 0.93


# --- the tool -----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        'build_text_embeddings', ROOT / 'tools/build_text_embeddings.py'
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_builds_a_file(tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny_folder(tmp_path / 'clip'), tmp_path / 'words.vocab.safetensors'
    command = ['--vocabulary', 'red star, heart, ring', '--novel', 'heart', '--templates', 'clip7']
    assert run_tool(tool.main, [*command, '--model', str(folder), '--out', str(out), '--device', 'cpu']) == 0
    encoder = TextEncoder(folder)
    loaded = TextEmbeddings.load(out, encoder.fingerprint)
    wanted = TextEmbeddings.build('red star, heart, ring', 'clip7', encoder)
    assert torch.equal(loaded.embeddings, wanted.embeddings)
    assert loaded.vocabulary.novel_names == ('heart',)
    assert '3 classes (1 novel) x 24, 7 templates' in capsys.readouterr().out
    plain = ['--vocabulary', 'cat', '--model', str(tmp_path / 'arch.json'), '--pretrained', 'random:1']
    own = ['--templates', 'a {}', 'one {}', '--out', str(out)]
    assert run_tool(tool.main, [*plain, *own]) == 0
    assert TextEmbeddings.load(out).templates == ('a {}', 'one {}')


def test_tool_imports_a_matrix(tmp_path: Path, tool: ModuleType) -> None:
    np.save(tmp_path / 'm.npy', np.arange(6.0).reshape(3, 2) + 1)
    words, out = tmp_path / 'words.json', tmp_path / 'words.vocab.safetensors'
    words.write_text(json.dumps(['cat', 'dog']))
    command = ['--vocabulary', str(words), '--from-matrix', str(tmp_path / 'm.npy'), '--out', str(out)]
    assert run_tool(tool.main, command) == 0
    assert TextEmbeddings.load(out).encoder_fingerprint == ''
    folder = tiny_folder(tmp_path / 'clip')
    assert run_tool(tool.main, [*command, '--model', str(folder)]) == 0
    torch.testing.assert_close(TextEmbeddings.load(out).embeddings[0], torch.tensor(unit(1, 3, 5)))
    assert TextEmbeddings.load(out).encoder_fingerprint == TextEncoder(folder).fingerprint


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--vocabulary', 'cat, cat'], "error: class name 1 'cat' repeats class name 0"),
        (['--vocabulary', 'cat'], 'error: --model is needed'),
        (['--vocabulary', 'cat', '--model', 'RN5'], "error: 'RN5' is neither an architecture"),
        (
            ['--vocabulary', 'cat', '--model', 'RN50', '--templates', 'photo'],
            "unknown prompt templates 'photo'",
        ),
        (['--vocabulary', 'none.txt'], 'error: vocabulary file none.txt does not exist'),
        (['--vocabulary', 'cat', '--out', 'x.npy'], 'must end with .vocab.safetensors'),
    ],
)
def test_tool_ends_in_one_line(
    tmp_path: Path, tool: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if '--out' in arguments else ['--out', str(tmp_path / 'x.vocab.safetensors')]
    assert run_tool(tool.main, [*arguments, *out]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count('\n') == 0
    assert not list(tmp_path.glob('*.vocab.safetensors'))
