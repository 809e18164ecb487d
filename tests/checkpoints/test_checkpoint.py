"""Checkpoints are read without executing anything, compared with a model in words, and written atomically."""

import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict, deque
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn

from ovd.checkpoints.comparing import LoadReport, compare
from ovd.checkpoints.loading import load_for_inference, load_into, load_metadata, load_tensors
from ovd.checkpoints.reading import UnsafeCheckpointError, read_array_pickle, read_checkpoint
from ovd.checkpoints.writing import save_checkpoint, save_tensors
from tests.toys.checkpoints import BOOBY_TRAPS, Payload, was_run


def training_state() -> dict[str, Any]:
    """What mmengine writes: weights, a log history, numpy scalars and arrays, plain values."""
    history = HistoryBuffer([1.0, 2.5], [1, 2], max_length=7)
    return {
        'meta': {'iter': 3, 'dataset_meta': {'classes': ('a', 'b'), 'palette': np.arange(6, dtype=np.uint8)}},
        'state_dict': OrderedDict(weight=torch.arange(3.0)),
        'message_hub': {
            'log_scalars': {'loss': history},
            'runtime_info': {'best': np.float64(0.5), 'count': np.int64(3)},
            'resumed_keys': {'loss': True},
        },
        'optimizer': {
            'state': {0: {'step': torch.tensor(3.0)}},
            'param_groups': [{'lr': 0.1, 'params': [0]}],
        },
    }


# Weights: reading and writing.


@pytest.mark.parametrize('suffix', ['safetensors', 'zip', 'legacy'])
def test_every_format_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    tensors = {'a': torch.arange(4.0).reshape(2, 2), 'b': torch.tensor([1, 2])}
    path = tmp_path / f'weights.{suffix}'
    if suffix == 'safetensors':
        save_tensors(path, tensors)
    else:
        torch.save({'state_dict': tensors}, path, _use_new_zipfile_serialization=suffix == 'zip')
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize('wrap', [('state_dict',), ('model',), ('model', 'state_dict'), ()])
def test_wrappers_are_removed(tmp_path: Path, wrap: tuple[str, ...]) -> None:
    content: Any = {'weight': torch.ones(1)}
    for key in reversed(wrap):
        content = {'epoch': 1, key: content}
    torch.save(content, tmp_path / 'w.pth')
    assert list(load_tensors(tmp_path / 'w.pth')) == ['weight']


def test_a_tensor_named_model_is_not_a_wrapper(tmp_path: Path) -> None:
    torch.save({'model': torch.ones(1), 'other': torch.ones(1)}, tmp_path / 'w.pth')
    assert sorted(load_tensors(tmp_path / 'w.pth')) == ['model', 'other']


def test_half_precision_and_scalars_survive(tmp_path: Path) -> None:
    tensors = {
        'h': torch.ones(2, dtype=torch.float16),
        'b': torch.ones(2, dtype=torch.bfloat16),
        's': torch.tensor(2.0),
    }
    save_tensors(tmp_path / 'w.safetensors', tensors)
    loaded = load_tensors(tmp_path / 'w.safetensors')
    assert {name: (t.dtype, t.shape) for name, t in loaded.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    metadata = {key: key.upper() for key in 'qwertyuiopé'}
    for name in ('one', 'two', 'three'):
        save_tensors(tmp_path / name, {'a': torch.ones(3), 'b': torch.zeros(2)}, metadata)
    assert len({(tmp_path / name).read_bytes() for name in ('one', 'two', 'three')}) == 1
    assert load_metadata(tmp_path / 'one') == metadata
    assert torch.equal(load_tensors(tmp_path / 'one')['a'], torch.ones(3))


def test_shared_and_strided_tensors_are_written_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / 'w', {'base': base, 'again': base, 'transposed': base.T, 'row': base[1]})
    loaded = load_tensors(tmp_path / 'w')
    assert torch.equal(loaded['again'], base)
    assert torch.equal(loaded['transposed'], base.T)
    assert torch.equal(loaded['row'], base[1])


def test_metadata_is_empty_without_any(tmp_path: Path) -> None:
    save_tensors(tmp_path / 'w', {'a': torch.ones(1)})
    assert load_metadata(tmp_path / 'w') == {}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.ones(1)], 'tensor'),
        ({}, '{}'),
        ({'state_dict': {'a': 'text'}}, r"\['state_dict'\].*'a'"),
        ({3: torch.ones(1)}, '3'),
    ],
)
def test_content_that_is_not_weights_is_named(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=message):
        load_tensors(tmp_path / 'w.pth')


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth'):
        load_tensors(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path)
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(ValueError, match=r'empty\.pth'):
        load_tensors(tmp_path / 'empty.pth')
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    with pytest.raises(ValueError, match=r'page\.pth'):
        load_tensors(tmp_path / 'page.pth')


@pytest.mark.parametrize('kind', ['safetensors', 'zip', 'legacy'])
@pytest.mark.parametrize('keep', [0.05, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / 'w'
    tensors = {'a': torch.ones(1000)}
    if kind == 'safetensors':
        save_tensors(path, tensors)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == 'zip')
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r'w: '):
        load_tensors(path)


# TorchScript archives.


class Nested(nn.Module):
    """Parameters, buffers, a view, a tied weight, half precision and plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.register_buffer('steps', torch.arange(3))
        self.scale = nn.Parameter(torch.full((2,), 1.5, dtype=torch.float16))
        self.rows = nn.Parameter(self.layers[0].weight.detach()[1:])
        self.size = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, Nested]:
    module = Nested().eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(module), str(tmp_path / 'net.pt'))
    return tmp_path / 'net.pt', module


def test_the_tensors_of_a_torchscript_archive_are_read(
    archive: tuple[Path, Nested], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = archive

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('the program must not be loaded')

    monkeypatch.setattr(torch.jit, 'load', refuse)
    loaded = load_tensors(path)
    expected = module.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert load_into(Nested(), loaded).is_complete


def test_a_damaged_torchscript_archive_is_named(archive: tuple[Path, Nested]) -> None:
    path, _ = archive
    with zipfile.ZipFile(path) as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    short = next(name for name in entries if name.endswith('/data/0'))
    changes = [(short, b''), (short, None), ('net/byteorder', b'big'), ('net/data.pkl', b'\x80\x02')]
    for name, content in changes:
        with zipfile.ZipFile(path, 'w') as changed:
            for entry, original in {**entries, name: content}.items():
                if original is not None:
                    changed.writestr(entry, original)
        with pytest.raises(ValueError, match=r'net\.pt: damaged'):
            load_tensors(path)


# Booby traps.


@pytest.mark.parametrize('name', sorted(BOOBY_TRAPS))
def test_a_booby_trapped_file_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    path = BOOBY_TRAPS[name](tmp_path)
    for load in (load_tensors, read_checkpoint):
        with pytest.raises(UnsafeCheckpointError, match=rf'{path.name}: refused'):
            load(path)
    assert not was_run(tmp_path)


def test_the_trap_works_when_it_is_unpickled(tmp_path: Path) -> None:
    """Otherwise the tests above prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path)))
    assert was_run(tmp_path)


def test_classes_allowed_by_other_code_stay_refused(tmp_path: Path) -> None:
    torch.save({'a': Payload(tmp_path)}, tmp_path / 'w.pth')
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([exec, eval])
    try:
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(tmp_path / 'w.pth')
        assert {exec, eval} <= set(torch.serialization.get_safe_globals())
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    assert not was_run(tmp_path)


class ForgedDtype:
    """A float64 dtype whose pickled flags say that its items are Python objects."""

    def __reduce__(self) -> Any:
        return np.dtype, ('f8', False, True), (3, '<', None, None, None, -1, -1, 63)


class ForgedArray:
    def __reduce__(self) -> Any:
        shape, dtype = (4,), ForgedDtype()
        state = (1, shape, dtype, False, struct.pack('<4d', 1, 2, 3, 4))
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b'b'), state


class ObjectArray:
    def __reduce__(self) -> Any:
        return np.array([None, 'x'], dtype=object).__reduce__()


def test_forged_dtype_flags_have_no_effect(tmp_path: Path) -> None:
    torch.save({'a': ForgedArray()}, tmp_path / 'w.pth')
    array = read_checkpoint(tmp_path / 'w.pth')['a']
    assert array.tolist() == [1, 2, 3, 4]
    assert not array.dtype.hasobject


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    torch.save({'a': ObjectArray()}, tmp_path / 'w.pth')
    with pytest.raises(UnsafeCheckpointError, match=r"numpy\.dtype\('O8'\)"):
        read_checkpoint(tmp_path / 'w.pth')


def test_getattr_reaches_nothing(tmp_path: Path) -> None:
    class Reach:
        def __reduce__(self) -> Any:
            return getattr, (np.ndarray, 'tofile')

    torch.save({'a': Reach()}, tmp_path / 'w.pth')
    assert read_checkpoint(tmp_path / 'w.pth')['a'] is None


def test_config_text_that_mmengine_would_execute_is_dropped(tmp_path: Path) -> None:
    state = training_state()
    state['meta']['config'] = 'import os; os.system("exit")'
    state['message_hub']['runtime_info']['cfg'] = 'model = dict()'
    torch.save(state, tmp_path / 'w.pth')
    loaded = read_checkpoint(tmp_path / 'w.pth')
    assert 'config' not in loaded['meta']
    assert 'cfg' not in loaded['message_hub']['runtime_info']


# Pickled arrays.


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_are_read(protocol: int) -> None:
    value = [
        {'a': np.arange(6, dtype=np.float32).reshape(2, 3).T, 'n': 3},
        np.float64(2.5),
        np.zeros((0, 5)),
        (1, 'x'),
    ]
    loaded = read_array_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)), 'boxes.pkl')
    assert loaded[0]['a'].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert loaded[0]['a'].flags.writeable
    assert loaded[1:2] + loaded[3:] == [2.5, (1, 'x')]
    assert loaded[2].shape == (0, 5)


def test_pickled_traps_and_damage_are_named(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps([np.zeros(3), Payload(tmp_path)], protocol=protocol)
        with pytest.raises(UnsafeCheckpointError, match=r'boxes\.pkl.*\w+\.exec'):
            read_array_pickle(io.BytesIO(content), 'boxes.pkl')
    assert not was_run(tmp_path)
    whole = pickle.dumps([np.zeros(30)])
    for length in (0, 1, 10, 50, len(whole) - 1):
        with pytest.raises(ValueError, match=r'boxes\.pkl: damaged'):
            read_array_pickle(io.BytesIO(whole[:length]), 'boxes.pkl')
    forged = read_array_pickle(io.BytesIO(pickle.dumps(ForgedArray(), protocol=2)), 'boxes.pkl')
    assert forged.tolist() == [1, 2, 3, 4]
    assert not forged.dtype.hasobject


# Training states.


def test_a_training_state_survives(tmp_path: Path) -> None:
    save_checkpoint(training_state(), str(tmp_path / 'iter_3.pth'))
    loaded = mmengine_checkpoint._load_checkpoint(str(tmp_path / 'iter_3.pth'))
    history = loaded['message_hub']['log_scalars']['loss']
    assert isinstance(history, HistoryBuffer)
    assert history.data[0].tolist() == [1.0, 2.5]
    assert history.data[1].tolist() == [1, 2]
    assert history.max_length == 7
    assert history.mean() == pytest.approx(3.5 / 3)
    assert history.statistics('max') == 2.5
    history.update(4.0)
    assert loaded['message_hub']['runtime_info'] == {'best': 0.5, 'count': 3}
    assert loaded['meta']['dataset_meta']['classes'] == ('a', 'b')
    assert loaded['meta']['dataset_meta']['palette'].tolist() == list(range(6))
    assert loaded['meta']['dataset_meta']['palette'].dtype == np.uint8
    assert torch.equal(loaded['state_dict']['weight'], torch.arange(3.0))
    assert loaded['optimizer']['param_groups'] == [{'lr': 0.1, 'params': [0]}]


@pytest.mark.parametrize('dtype', ['?', 'i1', 'u2', '<i8', '>f4', 'f2', 'U3', 'S4'])
def test_numeric_and_text_arrays_survive(tmp_path: Path, dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    fortran = np.asfortranarray(array)
    torch.save({'a': array, 'f': fortran, 'none': array[:0]}, tmp_path / 'w.pth')
    loaded = read_checkpoint(tmp_path / 'w.pth')
    assert loaded['a'].tolist() == array.tolist()
    assert loaded['f'].tolist() == array.tolist()
    assert loaded['a'].dtype.kind == array.dtype.kind
    assert loaded['none'].shape == (0, 2)


def test_a_file_of_numpy_1_is_read(tmp_path: Path) -> None:
    """numpy 1 named its module ``numpy.core``, numpy 2 ``numpy._core``."""
    path = tmp_path / 'w.pth'
    torch.save({'a': np.arange(3.0), 's': np.float32(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old, new = b'numpy.core.multiarray', b'numpy._core.multiarray'
    assert old in content or new in content
    for replacement in (old, new):
        path.write_bytes(content.replace(new, old).replace(old, replacement))
        loaded = read_checkpoint(path)
        assert loaded['a'].tolist() == [0, 1, 2]
        assert loaded['s'] == 2


def test_a_list_that_holds_itself_is_read(tmp_path: Path) -> None:
    loop: list[Any] = [np.float64(1)]
    loop.append(loop)
    torch.save({'loop': loop}, tmp_path / 'w.pth')
    loaded = read_checkpoint(tmp_path / 'w.pth')['loop']
    assert loaded[0] == 1
    assert loaded[1] is loaded


class Colour(IntEnum):
    RED = 2


def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = OrderedDict(a=torch.ones(1))
    weights._metadata = {'': {'version': 2}}  # type: ignore[attr-defined]
    state = {
        'state_dict': weights,
        'meta': {
            'path': Path('a') / 'b',
            'enum': Colour.RED,
            'config': None,
            'options': ConfigDict(a=ConfigDict(b=[1])),
            'queue': deque([1, 2]),
            'bytes': b'\x00\xff',
            'set': {1, 'a'},
            'object': object(),
            'list': [lambda: 0, 5],
        },
    }
    path = str(tmp_path / 'w.pth')
    save_checkpoint(state, path)
    loaded = read_checkpoint(path)
    assert loaded['meta'] == {
        'path': os.path.join('a', 'b'),
        'enum': 2,
        'options': {'a': {'b': [1]}},
        'queue': [1, 2],
        'bytes': b'\x00\xff',
        'set': {1, 'a'},
        'list': [None, 5],
    }
    assert loaded['state_dict']._metadata == {'': {'version': 2}}
    assert 'object' in state['meta']


def test_a_failed_save_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'w.pth'
    save_checkpoint(training_state(), str(path))
    before = path.read_bytes()

    def fail(state: Any, target: Path) -> None:
        target.write_bytes(b'half')
        raise RuntimeError('[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match=r'w\.pth'):
        save_checkpoint(training_state(), str(path))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['w.pth']


# Comparing with a model.


class Net(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(2, width)
        self.norm = nn.BatchNorm1d(width)


def test_a_fitting_checkpoint_is_loaded() -> None:
    source, target = Net(), Net()
    report = load_into(target, source.state_dict())
    assert report == LoadReport((), (), (), 7)
    assert report.is_complete
    assert torch.equal(target.linear.weight, source.linear.weight)


def test_every_difference_is_reported_and_nothing_is_loaded() -> None:
    target = Net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    tensors = Net(3).state_dict()
    tensors['norm.bias'] = torch.full((2,), 9.0)
    tensors['extra.weight'] = tensors.pop('linear.bias')
    with pytest.raises(ValueError, match=r'weights\.pth') as caught:
        load_into(target, tensors, source='weights.pth')
    message = str(caught.value)
    assert '1 missing: linear.bias' in message
    assert '1 unexpected: extra.weight' in message
    assert 'linear.weight (3, 2) instead of (2, 2)' in message
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_not_strict_loads_what_fits() -> None:
    target = Net()
    tensors = {'linear.weight': torch.ones(2, 2), 'linear.bias': torch.ones(5), 'other': torch.ones(1)}
    report = load_into(target, tensors, strict=False)
    assert report.mismatched == (('linear.bias', (5,), (2,)),)
    assert report.unexpected == ('other',)
    assert torch.equal(target.linear.weight, torch.ones(2, 2))


def test_another_models_checkpoint_is_refused_even_if_not_strict() -> None:
    with pytest.raises(ValueError, match='Net'):
        load_into(Net(), {'decoder.weight': torch.ones(1)}, strict=False)


def test_weights_to_answer_with_must_be_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is an error, what is left over a warning; a data-parallel prefix is neither."""
    warned: list[str] = []
    monkeypatch.setattr(
        'ovd.checkpoints.loading.current_logger', lambda: SimpleNamespace(warning=warned.append)
    )
    source, target = Net(), Net()
    tensors = {f'module.{key}': value for key, value in source.state_dict().items()}
    assert load_for_inference(target, tensors).is_complete
    assert torch.equal(target.linear.weight, source.linear.weight)
    report = load_for_inference(target, Net().state_dict() | {'extra': torch.ones(1)}, 'weights.pth')
    assert report.unexpected == ('extra',)
    assert len(warned) == 1
    assert warned[0].startswith('Loaded weights.pth in part')
    before = target.linear.weight.clone()
    tensors = Net().state_dict()
    del tensors['linear.bias']
    with pytest.raises(ValueError, match=r'weights\.pth.*1'):
        load_for_inference(target, tensors, 'weights.pth')
    assert torch.equal(target.linear.weight, before)


def test_allowed_differences_are_not_reported() -> None:
    tensors = Net().state_dict()
    del tensors['norm.num_batches_tracked']
    del tensors['linear.bias']
    tensors['clip.visual.proj'] = torch.ones(1)
    report = load_into(Net(), tensors, allow_missing=['linear.*'], allow_unexpected=['clip.*'])
    assert report.is_complete
    assert not compare(Net(), tensors).is_complete


def test_long_reports_are_shortened() -> None:
    report = compare(Net(), {f'k{index}': torch.ones(1) for index in range(20)})
    assert '20 unexpected: k0, k1, k2, k3, k4, k5 and 14 more' in str(report)


def test_the_listing_names_every_key() -> None:
    tensors = {f'k{index}': torch.ones(1) for index in range(20)} | {'linear.bias': torch.ones(5)}
    lines = compare(Net(), tensors).listing().splitlines()
    assert lines[:2] == ['missing: linear.weight', 'missing: norm.weight']
    assert lines[5:25] == [f'unexpected: k{index}' for index in range(20)]
    assert lines[25:] == ['(5,) instead of (2,): linear.bias']
    assert compare(Net(), Net().state_dict()).listing() == ''


def test_a_tar_is_not_a_checkpoint(tmp_path: Path) -> None:
    """torch once read tar archives, outside its weights-only reader."""
    with tarfile.open(tmp_path / 'w.pth', 'w') as archive:
        archive.addfile(tarfile.TarInfo('pickle'))
    with pytest.raises(UnsafeCheckpointError, match='unknown'):
        read_checkpoint(tmp_path / 'w.pth')


def test_what_load_hooks_rename_counts_as_fitting() -> None:
    model = nn.Sequential(nn.Linear(2, 2))

    def rename(state: dict[str, Any], prefix: str, *_: Any) -> None:
        for key in [key for key in state if key.startswith('old.')]:
            state[key.replace('old.', '0.')] = state.pop(key)

    model.register_load_state_dict_pre_hook(lambda module, *args: rename(*args))
    tensors = {'module.old.weight': torch.ones(2, 2), 'module.old.bias': torch.ones(2)}
    assert not compare(model, tensors).is_complete
    assert load_into(model, tensors).is_complete
    assert model[0].weight.eq(1).all()
    assert set(tensors) == {'module.old.weight', 'module.old.bias'}


class Renamer(nn.Module):
    """Renames on loading, by a method of its own as mmdet's detectors do, and has a part that is absent."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 2)
        self.register_module('clip', None)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key in [key for key in state if key.startswith(f'{prefix}old.')]:
            state[key.replace('old.', 'new.')] = state.pop(key)
        super()._load_from_state_dict(state, prefix, *rest)


def test_what_a_module_renames_on_loading_counts_as_fitting() -> None:
    model = nn.ModuleDict({'part': Renamer()})
    before = model.part.new.weight.clone()
    tensors = {'part.old.weight': torch.ones(2, 2), 'part.old.bias': torch.ones(2)}
    assert compare(model, tensors) == LoadReport((), (), (), 2)
    assert torch.equal(model.part.new.weight, before), 'comparing changes nothing'
    assert load_into(model, tensors).is_complete
    assert model.part.new.weight.eq(1).all()


def test_a_renamed_tensor_of_another_shape_is_left_out() -> None:
    model = Renamer()
    tensors = {'old.weight': torch.ones(2, 2), 'old.bias': torch.ones(5)}
    report = load_into(model, tensors, strict=False)
    assert report == LoadReport((), (), (('new.bias', (5,), (2,)),), 1)
    assert model.new.weight.eq(1).all()


def test_what_belongs_to_an_absent_part_is_left_over() -> None:
    tensors = {**Renamer().state_dict(), 'clip.proj': torch.ones(1), 'new.more.x': torch.ones(1)}
    assert compare(Renamer(), tensors).unexpected == ('new.more.x', 'clip.proj')


def test_a_scalar_stored_as_one_element_fits() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.zeros(()))
    assert load_into(model, {'scale': torch.full((1,), 3.0)}).is_complete
    assert model.scale.item() == 3
