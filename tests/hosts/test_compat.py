"""The import hooks: operators without a compiler, quiet hosts, in this process and in spawned ones."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ovd.hosts import import_hooks as compat
from tests.helpers import ROOT, write_coco

needs_stand_in = pytest.mark.skipif(not compat.uses_stand_in(), reason='mmcv has its compiled operators')


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with Python's default warning filters."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONWARNINGS'}
    environment['PYTHONPATH'] = str(ROOT)
    command = [sys.executable, '-c', code]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_importing_ovd_imports_neither_torch_nor_a_host() -> None:
    done = run_python(
        'import sys, ovd\nheavy = {"torch", "numpy", "mmengine", "mmcv", "mmdet", "mmseg", "open_clip"}\n'
        'assert not heavy & set(sys.modules)'
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


HOST_IMPORTS = {
    'apis': 'import mmdet.apis, mmseg.apis, mmdet.models, mmseg.models, mmengine.runner',
    'registry': (
        'from mmengine.registry import DATASETS, MODELS\n'
        'for root, scope, name in [\n'
        '    (MODELS, "mmdet", "MaskRCNN"), (DATASETS, "mmdet", "CocoDataset"),\n'
        '    (MODELS, "mmseg", "EncoderDecoder"), (DATASETS, "mmseg", "ADE20KDataset"),\n'
        ']:\n'
        '    with root.switch_scope_and_registry(scope) as registry:\n'
        '        assert registry.get(name) is not None'
    ),
}


@pytest.mark.parametrize('name', HOST_IMPORTS)
def test_hosts_are_imported_without_a_word(name: str) -> None:
    done = run_python(f'import ovd\n{HOST_IMPORTS[name]}')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_warnings_of_the_hosts_about_themselves_are_ignored_and_no_others() -> None:
    done = run_python(
        'import warnings\nimport ovd\nfrom ovd.hosts.import_hooks import HOST_WARNINGS\n'
        'for message in [*HOST_WARNINGS, "mine"]:\n    warnings.warn(message)'
    )
    assert done.stderr.count('Warning') == 1
    assert 'UserWarning: mine' in done.stderr


def test_syntax_warnings_are_ignored_in_mmdet_only() -> None:
    done = run_python(
        'import ovd\n'
        'compile("value = \'\\\\i\'", "/packages/mmdet/models/head.py", "exec")\n'
        'compile("value = \'\\\\i\'", "/home/mine/head.py", "exec")'
    )
    assert done.returncode == 0
    assert '/mmdet/' not in done.stderr
    if sys.version_info >= (3, 12):
        assert '/home/mine/head.py:1: SyntaxWarning: invalid escape sequence' in done.stderr


@needs_stand_in
def test_a_host_imported_too_early_is_reported() -> None:
    done = run_python('import mmdet.structures.mask\nimport ovd')
    assert done.returncode == 0
    assert 'imported before ovd and found no operators: import ovd first' in done.stderr


def test_a_spawned_worker_unpickles_a_dataset_in_silence(tmp_path: Path) -> None:
    write_coco(tmp_path, ['star'], [[(0, [4, 4, 20, 20])], [(0, [8, 8, 16, 16])]])
    code = """
import numpy as np, ovd
from torch.utils.data import DataLoader
from ovd.datasets.detection.base_novel import OpenVocabularyDataset

pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id',)),
]
from mmengine.registry import init_default_scope
init_default_scope('mmdet')
data = OpenVocabularyDataset(
    ann_file='instances.json', data_prefix=dict(img='images/'), vocabulary=['star'], pipeline=pipeline
)
loader = DataLoader(data, num_workers=1, multiprocessing_context='spawn', collate_fn=list)
for item, in loader:
    instances = item['data_samples'].gt_instances
    cropped = instances.masks.crop_and_resize(instances.bboxes.tensor, (7, 7), np.zeros(1, int))
    assert cropped.masks.all()
"""
    done = run_python(code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@needs_stand_in
def test_spawned_processes_have_the_operators_without_a_main_module() -> None:
    code = (
        'import multiprocessing, ovd.hosts.import_hooks\n'
        'with multiprocessing.get_context("spawn").Pool(1) as pool:\n'
        '    assert pool.apply(ovd.hosts.import_hooks.uses_stand_in)'
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, '')


def test_the_compiled_extension_is_preferred(tmp_path: Path) -> None:
    finder = compat._FINDER
    assert finder in sys.meta_path
    absent = finder.find_spec('mmcv._ext', [str(tmp_path)])
    assert absent is not None
    assert absent.origin == 'ovd.hosts.ops'
    (tmp_path / '_ext.py').write_text('nms = None\n')
    importlib.invalidate_caches()
    present = finder.find_spec('mmcv._ext', [str(tmp_path)])
    assert present is not None
    assert present.origin == str(tmp_path / '_ext.py')


def test_other_modules_are_left_to_other_finders() -> None:
    assert compat._FINDER.find_spec('json', None) is None
    assert compat._FINDER.find_spec('mmcv', None) is None


def test_installing_twice_changes_nothing() -> None:
    before = list(sys.meta_path)
    compat.install()
    assert sys.meta_path == before


@needs_stand_in
def test_an_operator_we_lack_fails_when_called_and_says_what_to_do() -> None:
    extension = importlib.import_module('mmcv._ext')
    operator = extension.carafe_forward
    with pytest.raises(NotImplementedError, match=r"'carafe_forward'.*pip"):
        operator(1, 2)
    assert not hasattr(extension, '__path__')


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module file ``toy_host.py`` to be written by the test and imported once."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'toy_host', raising=False)
    return tmp_path / 'toy_host.py'


def test_a_hook_runs_after_the_import(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ModuleType] = []
    monkeypatch.setitem(compat._AFTER_IMPORT, 'toy_host', seen.append)
    host.write_text('value = 3\n')
    module = importlib.import_module('toy_host')
    assert seen == [module]
    assert module.value == 3
    assert importlib.reload(module) is module
    assert seen == [module, module]


def test_a_hook_runs_for_a_module_imported_before(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write_text('value = 3\n')
    module = importlib.import_module('toy_host')
    seen: list[ModuleType] = []
    monkeypatch.setattr(sys, 'meta_path', [f for f in sys.meta_path if f is not compat._FINDER])
    monkeypatch.setattr(compat, '_AFTER_IMPORT', {'toy_host': seen.append})
    compat.install()
    assert seen == [module]


def test_checkpoint_loading_is_guarded() -> None:
    module = importlib.import_module('mmengine.runner.checkpoint')
    assert module._safe_torch_load.__module__ == 'ovd.hosts.mmengine_checkpoints'


NOISY_HOST = """
import logging
from mmengine.logging import print_log
print_log('hidden', level=logging.DEBUG)
print_log('shown')
def speak():
    print_log('later', level=logging.DEBUG)
"""


def test_debug_lines_are_dropped_during_an_import_only(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mmengine_logging = importlib.import_module('mmengine.logging')
    original = mmengine_logging.print_log
    monkeypatch.setitem(compat._AROUND_IMPORT, 'toy_host', compat._without_debug_lines)
    host.write_text(NOISY_HOST)
    module = importlib.import_module('toy_host')
    assert capsys.readouterr().out == 'shown\n'
    assert mmengine_logging.print_log is original
    module.speak()
    assert capsys.readouterr().out == 'later\n'


def test_print_log_is_restored_when_the_import_fails(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mmengine_logging = importlib.import_module('mmengine.logging')
    original = mmengine_logging.print_log
    monkeypatch.setitem(compat._AROUND_IMPORT, 'toy_host', compat._without_debug_lines)
    host.write_text('raise RuntimeError("broken")\n')
    with pytest.raises(RuntimeError, match='broken'):
        importlib.import_module('toy_host')
    assert mmengine_logging.print_log is original


def test_loggers_keep_their_debug_messages_during_an_import(caplog: pytest.LogCaptureFixture) -> None:
    mmengine_logging = importlib.import_module('mmengine.logging')
    logger = logging.getLogger('toy')
    with caplog.at_level(logging.DEBUG, 'toy'), compat._without_debug_lines():
        mmengine_logging.print_log('kept', logger, logging.DEBUG)
    assert caplog.messages == ['kept']
