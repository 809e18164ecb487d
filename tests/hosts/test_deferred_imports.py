"""Packages that wait until they are used, and the lazy front door of ``ovd``."""

import subprocess
import sys
from pathlib import Path

import pytest

import ovd
from ovd.hosts.deferred_imports import Deferred, deferred
from tests.helpers import ROOT


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package ``large_one`` with a class, a function and a table, and users of it."""
    folder = tmp_path / 'large_one'
    folder.mkdir()
    (folder / '__init__.py').write_text('class Tool:\n    size = 3\n\ndef double(x):\n    return 2 * x\n')
    (folder / 'part.py').write_text('table = {"a": 1}\n')
    (tmp_path / 'user_of_it.py').write_text(
        'import large_one\nimport large_one.part as part\nfrom large_one import Tool, double\n'
        'from large_one.part import table\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield 'large_one'
    for name in [n for n in sys.modules if n.partition('.')[0] in ('large_one', 'user_of_it')]:
        del sys.modules[name]


def import_user() -> object:
    with deferred(['large_one']):
        import user_of_it  # type: ignore[import-not-found]
    return user_of_it


def test_a_deferred_package_is_imported_on_first_use(package: str) -> None:
    user = import_user()
    assert isinstance(user.Tool, Deferred)  # type: ignore[attr-defined]
    assert not [name for name in sys.modules if name.startswith(package)]
    assert user.double(4) == 8  # type: ignore[attr-defined]
    assert package in sys.modules


def test_a_deferred_class_is_a_class_where_it_is_used(package: str) -> None:
    user = import_user()

    class Child(user.Tool):  # type: ignore[name-defined, misc]
        pass

    assert Child().size == 3
    assert isinstance(Child(), user.Tool)  # type: ignore[attr-defined]
    assert issubclass(Child, user.Tool)  # type: ignore[attr-defined]
    assert user.Tool.size == 3  # type: ignore[attr-defined]


def test_modules_and_items_of_a_deferred_package(package: str) -> None:
    user = import_user()
    assert user.table['a'] == 1  # type: ignore[attr-defined]
    assert user.part.table == {'a': 1}  # type: ignore[attr-defined]
    assert user.large_one.double(1) == 2  # type: ignore[attr-defined]


def test_use_while_it_is_deferred_imports_the_real_package(package: str, tmp_path: Path) -> None:
    (tmp_path / 'user_of_it.py').write_text('from large_one import double\nvalue = double(5)\n')
    assert import_user().value == 10  # type: ignore[attr-defined]


def test_others_import_the_real_package(package: str) -> None:
    import_user()
    import large_one  # type: ignore[import-not-found]

    assert large_one.double(3) == 6


def test_loaded_and_absent_packages_are_left_alone(package: str) -> None:
    import large_one

    assert import_user().double is large_one.double  # type: ignore[attr-defined]
    with deferred(['no_such_package']), pytest.raises(ImportError):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_the_front_door_opens_lazily() -> None:
    assert set(ovd.__all__) <= set(dir(ovd))
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = ovd.no_such_name
    code = (
        'import sys\nfrom ovd import Vocabulary\n'
        'assert Vocabulary(["a"]).names == ("a",) and "torch" not in sys.modules\n'
        'from ovd import Predictor, TextEmbeddings, load_config\n'
        'heavy = {"mmdet", "mmseg", "transformers", "imgaug", "matplotlib"}\n'
        'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
        'import mmdet.datasets, torchvision.ops\n'
        'assert "imgaug" not in sys.modules\n'
        'from mmdet.datasets.transforms import generate_line\n'
        'import torch, inspect\n'
        'assert inspect.isclass(generate_line.LineString._real())\n'
        'assert torch._dynamo.is_compiling() is False\n'
    )
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
