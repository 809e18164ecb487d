"""A wheel in an empty folder: everything a user types works without a checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SOURCES = ('ovd', 'configs', 'pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE')


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns('__pycache__'))
        elif path.exists():
            shutil.copy(path, source / name)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    call(*pip, 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', str(folder), str(source))
    [wheel] = folder.glob('ovd-*.whl')
    shutil.rmtree(source)
    call(*pip, 'install', '--quiet', '--no-deps', '--target', str(folder / 'site'), str(wheel))
    return folder / 'site'


def call(*command: str, cwd: Path | None = None, path: Path | None = None) -> str:
    """Run a command; its output."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(path or '')}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_works_without_a_checkout(site: Path, tmp_path: Path) -> None:
    assert (site / 'ovd' / 'configs' / '_base_').is_dir()

    def ovd(*arguments: str) -> str:
        return call(sys.executable, str(site / 'bin' / 'ovd'), *arguments, cwd=tmp_path, path=site)

    where = 'import ovd, os; print(os.path.dirname(ovd.__file__))'
    assert Path(call(sys.executable, '-c', where, cwd=tmp_path, path=site).strip()) == site / 'ovd'
    assert 'predict' in ovd('--help')
    assert 'glip_shapes ' in ovd('configs')
    assert 'onedl-mmcv' in ovd('doctor')
    ovd('data', 'shapes', '--train', '8', '--val', '2', '--test', '2')
    few = ['max_iters=2', 'param_scheduler=[]', 'train_dataloader.batch_size=2']
    ovd('train', 'glip_shapes', '--cfg-options', *few)
    latest = 'work_dirs/glip_shapes/latest.pth'
    assert (tmp_path / latest).is_file()
    ovd('pack', 'glip_shapes', latest, 'models/shapes')
    ovd(
        'predict',
        'star, heart',
        'data/shapes/test',
        '--model',
        'models/shapes',
        '-t',
        '0',
        '--topk',
        '3',
        '--raw',
    )
    entries = json.loads((tmp_path / 'outputs' / 'predict' / 'predictions.json').read_text())
    assert {entry['image_id'] for entry in entries} == {1, 2}
    assert len(list((tmp_path / 'outputs' / 'predict').glob('*.jpg'))) == 2
    ovd('test', 'glip_shapes_detection', latest, '--dump', 'dump.json')
    assert isinstance(json.loads((tmp_path / 'dump.json').read_text()), list)
