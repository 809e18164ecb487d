"""The quickstart's bookkeeping: what is repeated, continued, moved aside; its table and its picture."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from ovd.cli.console import run_tool
from tests.helpers import ROOT

TOOL = """
import os, sys
from pathlib import Path

def main(argv):
    if 'fail' in argv:
        return 1
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'calls').open('a') as file:
        print(*argv, file=file)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, in an empty folder with a toy config and a toy tool that notes its calls."""
    spec = importlib.util.spec_from_file_location('quickstart', ROOT / 'tools' / 'quickstart.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, 'TOOLS', tmp_path)
    (tmp_path / 'toy.py').write_text(TOOL)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'base.py').write_text('max_iters = 3')
    (tmp_path / 'configs' / 'leaf.py').write_text("_base_ = 'base.py'")
    (tmp_path / 'out').mkdir()
    return module


def calls(folder: str) -> list[str]:
    return (Path(folder) / 'calls').read_text().splitlines()


def run(quickstart: ModuleType, *extra: str, product: str = 'made') -> None:
    """A run of two steps: the first reads the config, the second does not."""
    steps = quickstart.Steps(Path('out'))
    steps.run('one', 'toy.py', [product, 'configs/leaf.py', *extra], Path(product))
    steps.run('two', 'toy.py', ['second'], Path('second'))


def test_a_step_is_run_once(quickstart: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run(quickstart)
    run(quickstart)
    assert calls('made') == ['made configs/leaf.py']
    assert calls('second') == ['second']
    assert 'done before: made' in capsys.readouterr().out


def test_a_step_whose_product_is_gone_is_run_again(quickstart: ModuleType) -> None:
    run(quickstart)
    (Path('made') / 'calls').unlink()
    Path('made').rmdir()
    run(quickstart)
    assert calls('made') == ['made configs/leaf.py']
    assert calls('second') == ['second']


@pytest.mark.parametrize('change', ['arguments', 'config', 'base'])
def test_what_changed_and_all_after_it_is_repeated_and_nothing_removed(
    quickstart: ModuleType, change: str
) -> None:
    run(quickstart)
    extra = ['--seed'] if change == 'arguments' else []
    if change == 'config':
        Path('configs/leaf.py').write_text("_base_ = 'base.py'\nmax_iters = 4")
    if change == 'base':
        Path('configs/base.py').write_text('max_iters = 4')
    run(quickstart, *extra)
    assert calls('made') == [' '.join(['made configs/leaf.py', *extra])]
    assert calls('made.1') == ['made configs/leaf.py']
    assert calls('second') == calls('second.1') == ['second']


def test_a_comment_in_a_config_repeats_nothing(quickstart: ModuleType) -> None:
    run(quickstart)
    Path('configs/base.py').write_text('max_iters = 3  # steps')
    run(quickstart)
    assert not Path('made.1').exists()


def test_results_of_others_are_moved_aside(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('made', 'made.1'):
        Path(name).mkdir()
        Path(name, 'mine.pth').write_text(name)
    run(quickstart)
    assert Path('made.2/mine.pth').read_text() == 'made'
    assert Path('made.1/mine.pth').read_text() == 'made.1'
    assert 'what was in made is now in made.2' in capsys.readouterr().out


def test_a_failed_step_is_named_and_continued(quickstart: ModuleType) -> None:
    steps = quickstart.Steps(Path('out'))
    with pytest.raises(ValueError, match=r'step "one" failed: python tools/toy\.py made fail "a b"'):
        steps.run('one', 'toy.py', ['made', 'fail', 'a b'], Path('made'))
    Path('made').mkdir()
    Path('made', 'half').touch()
    with pytest.raises(ValueError, match='failed'):
        quickstart.Steps(Path('out')).run('one', 'toy.py', ['made', 'fail', 'a b'], Path('made'))
    assert Path('made/half').exists(), 'the same call continues what it left'


def test_a_step_beside_others_is_waited_for(quickstart: ModuleType) -> None:
    steps = quickstart.Steps(Path('out'))
    with steps.beside('one', 'toy.py', ['made'], Path('made')):
        steps.run('two', 'toy.py', ['second'], Path('second'))
    assert calls('made') == ['made']
    with pytest.raises(ValueError, match=r'step "three" failed, see out.bad\.log'):
        with steps.beside('three', 'toy.py', ['fail'], Path('bad')):
            pass
    again = quickstart.Steps(Path('out'))
    with again.beside('one', 'toy.py', ['made'], Path('made')):
        pass
    assert calls('made') == ['made']


def test_another_folder_is_refused_before_anything_is_drawn(
    quickstart: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(quickstart.main, []) == 2
    assert capsys.readouterr().err == ('error: tools/train.py does not exist: run from the repository root\n')
    assert not Path('data').exists()


def test_the_table_compares_parts_and_classes(quickstart: ModuleType) -> None:
    def report(base: float, novel: float | None) -> dict[str, object]:
        metrics = {'bbox/AP50_base': base, 'bbox/AP50_novel': novel, 'bbox/AP50': 0.5}
        rows = [{'name': 'star', 'group': 'base', 'bbox_AP50': base}]
        return {'metrics': metrics, 'per_class': rows}

    table = quickstart.comparison({'ViLD-text': report(0.75, 0.0789), 'ViLD': report(0.8, None)})
    assert table.splitlines() == [
        '| AP50 | base | novel | all |',
        '|---|---|---|---|',
        '| ViLD-text | 75.0 | 7.9 | 50.0 |',
        '| ViLD | 80.0 | - | 50.0 |',
        '',
        '| class | | ViLD-text | ViLD |',
        '|---|---|---|---|',
        '| star | base | 75.0 | 80.0 |',
    ]


def test_the_picture_shows_the_most_kinds_of_novel_shapes(quickstart: ModuleType) -> None:
    folder = Path('data/shapes/annotations')
    folder.mkdir(parents=True)
    names = ['star', 'heart', 'key']
    shown = {1: ['heart', 'heart', 'heart'], 2: ['heart', 'key'], 3: ['star', 'star']}
    content = {
        'images': [{'id': image, 'file_name': f'{image}.png'} for image in shown],
        'categories': [{'id': number, 'name': name} for number, name in enumerate(names)],
        'annotations': [
            {'image_id': image, 'category_id': names.index(name)}
            for image, found in shown.items()
            for name in found
        ],
    }
    (folder / 'instances_test.json').write_text(json.dumps(content))
    Path('data/shapes/manifest.json').write_text(json.dumps({'novel': ['heart', 'key']}))
    assert quickstart.picture_of_novel_shapes() == Path('data/shapes/test/2.png')
