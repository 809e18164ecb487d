"""The command ``ovd``: what it prints, what it refuses and how early, and that it starts light."""

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from ovd.catalogue.entries import entries
from ovd.cli.main import VERBS, load, run
from ovd.cli.question import READS_SENTENCES, pairs, parse_thresholds
from ovd.config import load_config
from tests.helpers import ROOT
from tests.toys.predictor import write_toy
from tests.toys.runs import write_config

HEAVY = ('torch', 'mmengine', 'mmdet', 'mmseg', 'numpy', 'PIL', 'cv2', 'pandas', 'supervision', 'tqdm')


def loaded_by(*argv: str) -> tuple[int, list[str]]:
    """Exit code of a command in a process of its own, and which heavy packages it imported."""
    code = (
        'import sys\nfrom ovd.cli.main import run\n'
        f'code = run({list(argv)!r})\n'
        f'sys.stdout.write("\\n" + str([code, [name for name in {HEAVY!r} if name in sys.modules]]))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    code_and_names = done.stdout.splitlines()[-1].replace("'", '"')
    exit_code, names = json.loads(code_and_names)
    return exit_code, names


def test_help_lists_every_verb_and_imports_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded_by('--help') == (0, [])
    assert run(['--help']) == 0
    shown = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f'  {name} ' in shown
        assert verb.help in ' '.join(shown.split())


@pytest.mark.parametrize('name', VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = run([name, '--help'])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0
    assert f'ovd {name}' in capsys.readouterr().out


def test_every_verb_has_one_way_in() -> None:
    for verb in VERBS.values():
        module = load(verb)
        assert hasattr(module, 'main' if verb.own_parser else verb.app)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['predict', 'dog, dog', 'photos'], 'repeats'),
        (['predict', '', 'photos'], 'empty'),
        (['predict', 'dog', 'photos', '-t', '1.5'], '1.5'),
        (['predict', 'dog', 'photos', '-t', 'cat=0.5'], "'cat'"),
        (['predict', 'dog', 'nowhere.jpg'], 'nowhere.jpg'),
        (['predict', 'dog', 'photos', '--save', 'docx'], 'docx'),
        (['label', 'photos', 'dog, dog'], 'repeats'),
        (['label', 'photos', 'dog', '--to', 'docx'], 'docx'),
    ],
)
def test_bad_questions_are_refused_before_anything_heavy_is_imported(
    argv: list[str], message: str, tmp_path: Path
) -> None:
    weights = tmp_path / 'w.pth'
    weights.touch()
    arguments = [*argv, '--config', 'toy.py', '--checkpoint', str(weights)]
    code = (
        'import sys\nfrom ovd.cli.main import run\n'
        f'code = run({arguments!r})\n'
        f'sys.stdout.write(str([code, *[name for name in {HEAVY!r} if name in sys.modules]]))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == '[2]', done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ')
    assert message in line


@pytest.mark.parametrize(
    'argv',
    [
        ['nosuch'],
        ['predict', 'dog', 'photos', '--nosuch'],
        ['predict', 'dog', 'photos'],
        ['predict', 'dog', 'photos', '--model', 'a', '--config', 'b'],
        ['predict', 'dog', 'photos', '--topk', '0', '--model', 'a'],
        ['train', 'nowhere.py'],
    ],
)
def test_mistakes_are_one_line_and_code_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')


def test_a_missing_argument_of_a_tool_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(['train'])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'ovd train --help' in line


def test_debug_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no\.py'):
        run(['train', str(tmp_path / 'no.py'), '--debug'])


def test_a_sentence_for_a_model_that_reads_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = write_toy(tmp_path)
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    argv = ['predict', 'a red star', str(tmp_path), '--sentence', '--config', str(config)]
    assert run([*argv, '--checkpoint', str(checkpoint)]) == 2
    assert 'ToyDetector' in capsys.readouterr().err


def test_the_models_that_read_sentences_are_listed() -> None:
    import ovd.models.registered  # noqa: F401
    from ovd.registry import MODELS

    readers = {name for name, kind in MODELS.module_dict.items() if getattr(kind, 'reads_sentences', False)}
    assert {name for name in readers if MODELS.get(name).__module__.startswith('ovd.')} == set(
        READS_SENTENCES
    )


def test_train_and_test_are_the_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(tmp_path, length=4))
    work_dir = ['--work-dir', str(tmp_path / 'run')]
    assert run(['train', config, *work_dir, '--cfg-options', 'train_cfg.max_iters=3', 'model.width=4']) == 0
    assert (
        run(
            [
                'test',
                config,
                str(tmp_path / 'run' / 'latest.pth'),
                *work_dir,
                '--cfg-options',
                'model.width=4',
            ]
        )
        == 0
    )
    assert 'metrics written to' in capsys.readouterr().out


def test_options_and_thresholds() -> None:
    assert pairs(['a.b=1', 'c=[x, y]']) == {'a.b': 1, 'c': ['x', 'y']}
    with pytest.raises(ValueError, match='KEY=VALUE'):
        pairs(['a'])
    assert parse_thresholds([], ['dog']) == (None, {})
    assert parse_thresholds(['0.4, dog=0.6', 'red star=0'], ['dog', 'red star']) == (
        0.4,
        {'dog': 0.6, 'red star': 0.0},
    )


def test_doctor_names_no_path_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / 'someone'
    (home / 'work' / 'data' / 'shapes').mkdir(parents=True)
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('OVD_HOME', str(home / 'models'))
    monkeypatch.setenv('HF_HOME', str(home / 'hub'))
    monkeypatch.chdir(home / 'work')
    (home / 'models' / 'a-model').mkdir(parents=True)
    (home / 'models' / 'a-model' / 'hashes.json').write_text('{}')
    assert run(['doctor']) == 0
    shown = capsys.readouterr().out
    assert 'someone' not in shown
    for part in ('onedl-mmcv', 'operators', 'CPU', 'OV-Shapes: data/shapes', 'a-model', 'HF_HOME', 'GB free'):
        assert part in shown


def test_a_model_that_is_not_here_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('OVD_HOME', str(tmp_path))
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    assert run(['predict', 'dog', str(tmp_path / 'a.png'), '--model', 'groupvit-gcc-yfcc']) == 2
    assert 'ovd fetch groupvit-gcc-yfcc' in capsys.readouterr().err


def test_models_are_listed_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('OVD_HOME', str(tmp_path))
    assert run(['models']) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in entries())
    assert run(['models', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row['name'] for row in rows} == set(entries())
    assert not any(row['on_disk'] for row in rows)
    assert run(['models', '--here']) == 0
    assert 'ovd fetch' in capsys.readouterr().out
    assert run(['models', 'groupvit-gcc-yfcc']) == 0
    assert 'segmentation' in capsys.readouterr().out
    assert run(['models', 'groupvit-gcc-yfc']) == 2
    assert 'groupvit-gcc-yfcc' in capsys.readouterr().err


def test_fetch_asks_and_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('OVD_HOME', str(tmp_path))
    assert run(['fetch', 'groupvit-gcc-yfcc', '--plan']) == 0
    assert 'licence' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'stdin', io.StringIO())
    assert run(['fetch', 'groupvit-gcc-yfcc']) == 2
    assert '--yes' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_configs_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(['configs', 'vild_shapes']) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('vild_shapes  ')
    assert run(['configs', 'no such']) == 2
    assert run(['configs', '--copy', 'vild_r50_lvis', '--out', str(tmp_path / 'mine')]) == 0
    first = Path(capsys.readouterr().out.splitlines()[0])
    assert first.name == 'vild_r50_lvis.py'
    assert load_config(first).to_dict() == load_config('vild_r50_lvis').to_dict()
    assert run(['configs', '--copy', 'vild_r50_lvis', '--out', str(tmp_path / 'mine')]) == 2


def documented_calls() -> list[str]:
    """Every command of the documentation whose options Typer reads."""
    text = (ROOT / 'docs' / 'command.md').read_text(encoding='utf-8')
    calls = [line.strip() for line in text.splitlines() if line.startswith('    ') and 'ovd ' in line]
    return [call[call.index('ovd ') :] for call in calls]


@pytest.mark.parametrize('call', documented_calls())
def test_documented_calls_have_known_options(call: str) -> None:
    name, *arguments = shlex.split(call)[1:]
    verb = VERBS[name]
    assert not verb.own_parser
    command = typer.main.get_command(getattr(load(verb), verb.app))
    command.make_context(name, arguments)
