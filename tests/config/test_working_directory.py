"""Shipped configs mean the same from every working directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from ovd.config import load_config
from ovd.encoders.loading import load_clip
from ovd.encoders.sources import resolve_built_in
from ovd.encoders.tokens.build_token_encoder import load_token_counter
from tests.helpers import ROOT


def test_built_in_encoders_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / 'ovd/assets/clip_tiny_shapes'
    expected = load_clip(folder).fingerprint
    monkeypatch.chdir(tmp_path)
    assert load_clip('clip_tiny_shapes').fingerprint == expected
    assert load_token_counter('clip_tiny_shapes')(['a red star']) == [3]
    assert load_token_counter('bert_tiny_shapes')(['red star']) == [2]
    (tmp_path / 'clip_tiny_shapes').mkdir()
    assert resolve_built_in('clip_tiny_shapes') == 'clip_tiny_shapes', 'an existing folder comes first'


@pytest.mark.parametrize('name', ['nowhere/clip', 'nowhere/clip.json'])
def test_a_relative_path_tells_where_it_was_looked_up(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        load_clip(name)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_token_counter('nowhere/bert')


def test_a_slip_in_a_built_in_name_is_hinted_at() -> None:
    with pytest.raises(ValueError, match='clip_tiny_shapes'):
        load_clip('clip_tiny_shape')


def test_a_model_is_built_far_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmengine.registry import DefaultScope

    from ovd.registry import MODELS

    monkeypatch.chdir(tmp_path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(load_config('vild_shapes').model)
    assert len(model.vocabulary) == 24


def test_the_configs_are_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip('setuptools')
    build = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('ovd', 'configs', 'pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
        (source / name).symlink_to(ROOT / name)
    made = subprocess.run(
        [*build, str(source), '--wheel-dir', str(tmp_path / 'wheels')], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / 'wheels').glob('ovd-*.whl')
    subprocess.run([sys.executable, '-m', 'zipfile', '-e', str(wheel), str(tmp_path / 'site')], check=True)
    code = (
        'from ovd.config import CONFIG_ROOT, load_config;'
        "print(CONFIG_ROOT); print(load_config('configs/vild_text_shapes.py').model.type)"
    )
    loaded = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={'PYTHONPATH': str(tmp_path / 'site'), 'PATH': '/usr/bin:/bin'},
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.split() == [str(tmp_path / 'site/ovd/configs'), 'ovd.ViLD'], loaded.stderr
