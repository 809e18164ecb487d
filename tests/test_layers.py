"""The folder tree is the architecture: who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / 'ovd'

# From the bottom up. A part may import itself, the parts of lower layers, and what SIDEWAYS adds.
LAYERS = [
    {
        'version',
        'files',
        'randomness',
        'devices',
        'optional',
        'options',
        'registry',
        'threads',
        'config',
        'hosts',
        'checkpoints',
        'catalogue',
    },
    {'text'},
    {'encoders', 'shapes'},
    {'regions', 'layers'},
    {'datasets', 'evaluation'},
    {'conversion', 'models'},
    {'caching', 'training', 'inference'},
    {'pseudo_labels'},
    {'cli'},
    {'__main__'},
]
SIDEWAYS = {
    'hosts': {'checkpoints'},
    'evaluation': {'datasets'},
}
BOTTOM = LAYERS[0]
HOSTS = {'mmengine', 'mmcv', 'mmdet', 'mmseg'}
# Third-party packages that a part must not import; a part that is not listed may import any.
FORBIDDEN = {
    'text': HOSTS | {'torch', 'numpy', 'torchvision', 'open_clip', 'PIL', 'cv2'},
    'shapes': HOSTS | {'torch', 'torchvision', 'open_clip'},
    'encoders': HOSTS,
    'regions': HOSTS,
    **dict.fromkeys(BOTTOM - {'hosts'}, HOSTS - {'mmengine'}),
}
# Formulas: tensors in, tensors out. Torch and nothing else of the field, no words; `check_option` aside.
FORMULAS = [
    'layers',
    'models/glip/fusion.py',
    'models/glip/masked_language.py',
    'models/glip/region_word_loss.py',
    'models/glip/token_loss.py',
    'models/glip/token_scores.py',
    'models/groupvit/grouping.py',
    'models/groupvit/presence_loss.py',
    'models/lseg/pixel_loss.py',
    'models/lseg/pixel_text.py',
    'models/vild/distillation.py',
    'models/vild/score_ensemble.py',
]
NOT_IN_FORMULAS = HOSTS | {'open_clip', 'torchvision', 'cv2', 'PIL'}
SYSTEMS = ('glip', 'groupvit', 'lseg', 'training_free', 'vild')


def part_of(path: Path) -> str:
    """``ovd/regions/crops.py`` -> clip, ``ovd/files.py`` -> files, ``ovd/__init__.py`` -> ''."""
    first = path.relative_to(PACKAGE).parts[0]
    return '' if first == '__init__.py' else first.removesuffix('.py')


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import in a file, those inside functions too, those for types not."""
    package = ('ovd', *path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING')
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*base, *filter(None, [node.module])])
            # `from . import x` names a module, `from .x import y` a thing in one.
            names = [f'{module}.{alias.name}' for alias in node.names] if module == 'ovd' else [module]
            yield from ((node.lineno, name) for name in names)


def allowed_parts(part: str) -> set[str]:
    level = next(index for index, layer in enumerate(LAYERS) if part in layer)
    lower = set().union(*LAYERS[:level])
    if part in BOTTOM:
        lower = {'files', 'optional', 'options', 'registry', 'version'}
    return lower | SIDEWAYS.get(part, set()) | {part}


def test_every_part_has_a_layer() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob('*.py')} - {''}
    unknown = parts - set().union(*LAYERS)
    assert not unknown, f'give {sorted(unknown)} a layer in this file'


def test_imports_point_down() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob('*.py')):
        part = part_of(path)
        if not part:
            continue
        for line, name in imports_of(path):
            head, _, rest = name.partition('.')
            where = f'{path.relative_to(ROOT)}:{line} imports {name}'
            if head == 'ovd':
                target = rest.split('.')[0]
                if target and target not in allowed_parts(part):
                    wrong.append(where)
            elif head in FORBIDDEN.get(part, set()) or head in ('tools', 'tests', 'benchmarks', 'configs'):
                wrong.append(where)
    assert not wrong, '\n'.join(wrong)


def test_imports_inside_the_package_exist() -> None:
    """mypy ignores modules that it does not find, and an import inside a function fails only when it runs."""
    wrong = []
    for path in sorted(PACKAGE.rglob('*.py')):
        for line, name in imports_of(path):
            head, *rest = name.split('.')
            target = PACKAGE.joinpath(*rest)
            if head == 'ovd' and rest and not (target.is_dir() or target.with_suffix('.py').is_file()):
                wrong.append(f'{path.relative_to(ROOT)}:{line} imports {name}')
    assert not wrong, '\n'.join(wrong)


def test_formulas_import_torch_and_other_formulas_only() -> None:
    wrong = []
    for name in FORMULAS:
        place = PACKAGE / name
        for path in [place] if place.is_file() else sorted(place.glob('*.py')):
            for line, module in imports_of(path):
                head, *rest = module.split('.')
                is_formula = any('/'.join(rest).startswith(f.removesuffix('.py')) for f in FORMULAS)
                if head in NOT_IN_FORMULAS or (head == 'ovd' and not is_formula and rest != ['options']):
                    wrong.append(f'{path.relative_to(ROOT)}:{line} imports {module}')
    assert not wrong, '\n'.join(wrong)


def test_systems_do_not_import_each_other() -> None:
    wrong = [
        f'{path.relative_to(ROOT)}:{line} imports {module}'
        for system in SYSTEMS
        for path in sorted((PACKAGE / 'models' / system).glob('*.py'))
        for line, module in imports_of(path)
        if any(module.startswith(f'ovd.models.{other}') for other in SYSTEMS if other != system)
    ]
    assert not wrong, '\n'.join(wrong)


def test_the_walk_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], 'PACKAGE', tmp_path)
    (tmp_path / 'encoders').mkdir()
    path = tmp_path / 'encoders' / 'a.py'
    path.write_text(
        'import os, ovd.models.vild.detector\n'
        'from ..shapes.scenes import draw\n'
        'from .b import c\n'
        'from .. import inference\n'
        'from ovd import training\n'
        'from typing import TYPE_CHECKING\n'
        'def f():\n    import mmdet\n'
        'if TYPE_CHECKING:\n    import mmseg\n'
    )
    assert [name for _, name in imports_of(path)] == [
        'os',
        'ovd.models.vild.detector',
        'ovd.shapes.scenes',
        'ovd.encoders.b',
        'ovd.inference',
        'ovd.training',
        'typing',
        'mmdet',
    ]


def test_inner_packages_import_nothing_by_themselves() -> None:
    for path in PACKAGE.rglob('__init__.py'):
        if path.relative_to(PACKAGE).parent.as_posix() in ('.', 'config', 'hosts/ops'):
            continue
        source = path.read_text(encoding='utf-8')
        assert not [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_no_module_prints() -> None:
    printing = [
        f'{path.relative_to(ROOT)}:{node.lineno}'
        for path in PACKAGE.rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print'
    ]
    assert not printing


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds this checkout, with every warning shown."""
    return subprocess.run(
        [sys.executable, '-W', 'default', '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_importing_ovd_loads_nothing_heavy_and_says_nothing() -> None:
    heavy = sorted(HOSTS | {'torch', 'numpy', 'torchvision', 'open_clip', 'cv2', 'PIL', 'safetensors'})
    run = run_python(f'import sys, ovd; print([name for name in {heavy} if name in sys.modules])')
    assert run.returncode == 0, run.stderr
    assert run.stdout == '[]\n'
    assert run.stderr == ''


def test_reading_words_needs_no_torch() -> None:
    run = run_python(
        'import sys, ovd.text.vocabulary as v, ovd.text.templates; '
        "v.Vocabulary.parse('a, b'); print('torch' in sys.modules)"
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, 'False\n', '')


@pytest.mark.parametrize('tool', sorted(path.name for path in (ROOT / 'tools').glob('*.py')))
def test_every_tool_explains_itself(tool: str) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), '--help'],
        env={'PYTHONPATH': str(ROOT), 'PATH': ''},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith('usage:')
    assert run.stderr == ''
