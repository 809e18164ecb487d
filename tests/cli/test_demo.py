"""The demo: one picture and one JSON for each image, one clear line for each mistake."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovd.cli.console import run_tool
from ovd.inference.predictions import Prediction, Segmentation
from tests.helpers import ROOT, write_image
from tests.toys.predictor import write_toy
from tests.toys.segmentor import write_toy_segmentor


@pytest.fixture(scope='module')
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools' / 'demo.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Run:
    """Calls the demo with the toy model and keeps what it wrote."""

    def __init__(
        self,
        demo: ModuleType,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        model: tuple[Path, Path] | None = None,
    ) -> None:
        self.demo, self.folder, self.capsys = demo, folder, capsys
        config, checkpoint = write_toy(folder) if model is None else model
        self.out = folder / 'out'
        self.model = ['--config', str(config), '--checkpoint', str(checkpoint), '--device', 'cpu']

    def __call__(self, *arguments: object) -> tuple[int, list[str], list[str]]:
        """Exit code, lines on stdout, lines on stderr."""
        argv = [*self.model, *map(str, arguments), '--out', str(self.out)]
        code = run_tool(self.demo.main, [*argv, '--raw'])
        captured = self.capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    def written(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir()) if self.out.exists() else []


@pytest.fixture
def run(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(demo, tmp_path, capsys)


def red_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (64, 48), (255, 102, 0)).save(path)
    return path


def test_picture_and_json_of_one_image(run: Run) -> None:
    image = red_image(run.folder / 'photo.png')
    code, lines, errors = run(image, '--texts', 'green, red car, heart', '--score-thr', 0.2)
    assert (code, errors) == (0, [])
    assert lines == [f'{image}: 2 objects (red car 1.00, green 0.40) -> {run.out / "photo.png"}']
    assert run.written() == ['photo.json', 'photo.png']
    content = json.loads((run.out / 'photo.json').read_text())
    assert content['vocabulary'] == ['green', 'red car', 'heart']
    assert content['image'] == str(image)
    assert (content['height'], content['width'], content['score_threshold']) == (48, 64, 0.2)
    assert [(i['name'], i['label'], i['box']) for i in content['instances']] == [
        ('red car', 1, [0, 0, 64, 48]),
        ('green', 0, [0, 0, 64, 48]),
    ]
    assert all(i['mask']['size'] == [48, 64] for i in content['instances'])
    picture = np.asarray(Image.open(run.out / 'photo.png'))
    assert picture.shape == (480, 640, 3)
    assert (picture[5, 5] != (255, 102, 0)).any()


def test_files_folders_and_globs_each_once(run: Run) -> None:
    for name in ('b.png', 'a.jpg', 'c.PNG', 'notes.txt'):
        red_image(run.folder / 'photos' / name) if name != 'notes.txt' else (
            run.folder / 'photos' / name
        ).write_text('x')
    other = red_image(run.folder / 'other' / 'd.png')
    code, lines, _ = run(run.folder / 'photos', other, run.folder / 'o*' / '*.png', '--texts', 'red')
    assert code == 0
    assert [Path(line.split(':')[0]).name for line in lines[:-1]] == ['a.jpg', 'b.png', 'c.PNG', 'd.png']
    assert lines[-1].startswith('4 of 4 images, 4 objects')
    assert len(run.written()) == 8


def test_equal_names_and_inputs_are_never_overwritten(run: Run) -> None:
    one = red_image(run.out / 'x.png')
    two = red_image(run.folder / 'two' / 'x.png')
    before = one.read_bytes()
    code, _, _ = run(one, two, '--texts', 'red')
    assert code == 0
    assert one.read_bytes() == before
    assert run.written() == ['x.png', 'x_2.json', 'x_2.png', 'x_3.json', 'x_3.png']


def test_annotations_beside_the_images_are_not_overwritten(run: Run) -> None:
    image = red_image(run.out / 'a.jpg')
    (run.out / 'a.json').write_text('boxes')
    assert run(image, '--texts', 'red')[0] == 0
    assert (run.out / 'a.json').read_text() == 'boxes'
    assert run.written() == ['a.jpg', 'a.json', 'a_2.json', 'a_2.png']


def test_a_bad_image_does_not_stop_the_others(run: Run) -> None:
    folder = run.folder / 'photos'
    red_image(folder / 'a.png')
    red_image(folder / 'c.png')
    (folder / 'b.png').write_bytes((folder / 'a.png').read_bytes()[:60])
    (folder / 'd.png').touch()
    code, lines, errors = run(folder, '--texts', 'red')
    assert code == 2
    assert len(errors) == 2
    assert 'b.png' in errors[0]
    assert 'd.png' in errors[1]
    assert lines[-1].startswith('2 of 4 images, 2 objects')
    assert run.written() == ['a.json', 'a.png', 'c.json', 'c.png']


def test_an_image_that_cannot_be_resized_does_not_stop_the_others(run: Run) -> None:
    write_image(run.folder / 'photos' / 'a.png', 1, 3000)
    red_image(run.folder / 'photos' / 'b.png')
    code, lines, errors = run(run.folder / 'photos', '--texts', 'red')
    assert (code, len(errors)) == (2, 1)
    assert 'a.png: image 0 is too long and thin' in errors[0]
    assert lines[-1].startswith('1 of 2 images, 1 object, ')


def test_folders_and_globs_leave_out_what_is_hidden_or_no_image(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder)
    red_image(Path('photos/photo[1].png'))
    red_image(Path('photos/deep/down/x.png'))
    for name in ('._photo.jpg', 'notes.txt', '.hidden.png'):
        Path('photos', name).write_text('no image')
    code, lines, errors = run('photos', 'photos/*', 'photos/photo[1].png', '--texts', 'red')
    assert (code, errors, len(lines)) == (0, [], 1)
    code, lines, _ = run('photos/**/*', run.folder / 'photos' / 'photo[1].png', '--texts', 'red')
    assert code == 0
    assert [Path(line.split(':')[0]).name for line in lines[:-1]] == ['x.png', 'photo[1].png']
    code, lines, errors = run('photos/notes.txt', '--texts', 'red')
    assert (code, len(errors)) == (2, 1), 'a file that is named is taken for an image'
    assert 'notes.txt is empty, damaged or of an unknown image format' in errors[0]


def test_a_turned_photograph_is_answered_upright(run: Run) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 48), (255, 0, 0)).save(run.folder / 'phone.jpg', exif=exif)
    assert run(run.folder / 'phone.jpg', '--texts', 'red')[0] == 0
    content = json.loads((run.out / 'phone.json').read_text())
    assert (content['height'], content['width']) == (64, 48)
    assert content['instances'][0]['box'] == [0, 0, 48, 64]
    with Image.open(run.out / 'phone.png') as picture:
        assert picture.height > picture.width


def test_nothing_found_is_said(run: Run) -> None:
    code, lines, _ = run(red_image(run.folder / 'a.png'), '--texts', 'heart', '--score-thr', 0.3)
    assert code == 0
    assert 'nothing found' in lines[0]
    assert json.loads((run.out / 'a.json').read_text())['instances'] == []


def test_words_of_the_config_are_the_default(run: Run) -> None:
    code, lines, _ = run(red_image(run.folder / 'a.png'))
    assert code == 0
    assert 'red 1.00' in lines[0]


def test_limit_keeps_the_best(run: Run) -> None:
    image = red_image(run.folder / 'a.png')
    assert '1 object (red 1.00)' in run(image, '--texts', 'green, red', '--max-per-image', 1)[1][0]


def test_summary_counts_equal_names(demo: ModuleType) -> None:
    prediction = Prediction(
        boxes=np.zeros((3, 4), np.float32),
        scores=np.array([0.9, 0.8, 0.71], np.float32),
        labels=np.array([0, 1, 0]),
        names=('heart', 'ring', 'heart'),
        masks=None,
        size=(4, 4),
    )
    assert demo.describe(prediction) == '3 objects (2 heart 0.90, ring 0.80)'


@pytest.mark.parametrize('name', ['cmyk.jpg', 'grey.png', 'rgba.png', 'sixteen.png', 'palette.gif'])
def test_every_kind_of_image_works(run: Run, name: str) -> None:
    write_image(run.folder / 'source.png', 40, 50)
    if name == 'sixteen.png':
        Image.fromarray(np.full((40, 50), 40000, np.uint16)).save(run.folder / name)
    else:
        mode = {'cmyk.jpg': 'CMYK', 'grey.png': 'L', 'rgba.png': 'RGBA', 'palette.gif': 'P'}[name]
        with Image.open(run.folder / 'source.png') as image:
            image.convert(mode).save(run.folder / name)
    code, lines, errors = run(run.folder / name, '--texts', 'red', '--score-thr', 0)
    assert (code, errors) == (0, [])
    assert 'red' in lines[0]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.png', '--texts', 'red'], 'image nowhere.png does not exist'),
        (['', '--texts', 'red'], "image '' does not exist: the name is empty"),
        (['EMPTY', '--texts', 'red'], 'EMPTY holds no image'),
        (['*.nothing', '--texts', 'red'], "no image matches '*.nothing'"),
        (['GOOD', '--texts', 'red, , red'], 'name 1 is blank'),
        (['GOOD', '--texts', 'red, heart, red'], "'red'"),
        (['GOOD', '--texts', ''], 'text is empty'),
        (['GOOD', '--texts', 'red', '--score-thr', '2'], '--score-thr must lie between 0 and 1, got 2.0'),
        (['GOOD', '--texts', 'red', '--max-per-image', '0'], '--max-per-image must be at least 1, got 0'),
        (['GOOD', '--texts', 'red', '--font', 'no.ttf'], 'font no.ttf does not exist'),
        (['GOOD', 'nowhere.png', '--texts', 'red'], 'image nowhere.png does not exist'),
    ],
)
def test_mistakes_end_in_one_line_before_anything_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(run.folder)
    Path('EMPTY').mkdir()
    red_image(Path('good.png'))
    code, lines, errors = run(*[argument.replace('GOOD', 'good.png') for argument in arguments])
    assert code == 2
    assert lines == []
    assert len(errors) == 1
    assert message in errors[0]
    assert run.written() == []


def test_results_do_not_go_into_a_file(run: Run) -> None:
    run.out.touch()
    code, lines, errors = run(red_image(run.folder / 'a.png'), '--texts', 'red')
    assert (code, lines) == (2, [])
    assert errors == [f'error: --out {run.out} is a file, results need a folder']


def test_untrained_quickstart_says_what_to_run(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    red_image(tmp_path / 'a.png')
    assert run_tool(demo.main, ['a.png', '--texts', 'red', '--config', 'configs/vild_shape.py']) == 2
    message = capsys.readouterr().err
    assert 'configs/vild_shape.py does not exist' in message
    assert 'vild_shapes' in message
    Path('configs').mkdir()
    shutil.copy(write_toy(tmp_path)[0], 'configs/vild_shapes.py')
    assert run_tool(demo.main, ['a.png', '--texts', 'red']) == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert 'work_dirs/vild_shapes/latest.pth' in message
    assert 'make demo' in message


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_booby_trapped_checkpoint_is_refused(run: Run) -> None:
    payload = run.folder / 'payload'
    torch.save({'state_dict': {'weight': torch.ones(())}, 'extra': Trap(payload)}, run.folder / 'trap.pth')
    image = red_image(run.folder / 'a.png')
    code, lines, errors = run(image, '--texts', 'red', '--checkpoint', run.folder / 'trap.pth')
    assert (code, lines, len(errors)) == (2, [], 1)
    assert 'trap.pth' in errors[0]
    assert not payload.exists()
    torch.load(run.folder / 'trap.pth', weights_only=False)
    assert payload.exists()


# ---- segmentors


@pytest.fixture
def segment(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(demo, tmp_path, capsys, write_toy_segmentor(tmp_path, background=0.5))


def three_areas(path: Path) -> Path:
    """Half red, a quarter green, a quarter grey."""
    pixels = np.full((48, 64, 3), 120, np.uint8)
    pixels[:, :32] = (255, 0, 0)
    pixels[:24, 32:] = (0, 255, 0)
    Image.fromarray(pixels).save(path)
    return path


def test_segmentor_writes_picture_legend_and_json(segment: Run) -> None:
    image = three_areas(segment.folder / 'photo.png')
    code, lines, errors = segment(image, '--texts', 'green, red car, blue')
    assert (code, errors) == (0, [])
    assert lines == [
        f'{image}: 2 words (red car 50 %, green 25 %), background 25 % -> {segment.out / "photo.png"}'
    ]
    content = json.loads((segment.out / 'photo.json').read_text())
    assert content['vocabulary'] == ['green', 'red car', 'blue']
    assert (content['height'], content['width'], content['background']) == (48, 64, 3)
    assert 'score_threshold' not in content
    assert [(s['name'], s['area']) for s in content['segments']] == [
        ('red car', 48 * 32), ('green', 24 * 32), ('background', 24 * 32)
    ]  # fmt: skip
    picture = np.asarray(Image.open(segment.out / 'photo.png'))
    assert picture.shape[1] == 640
    assert picture.shape[0] > 480
    assert tuple(picture[400, 500]) == (120,) * 3, 'background keeps its look'
    assert tuple(picture[400, 100]) != (255, 0, 0)


def test_background_on_off_and_named_by_the_user(segment: Run) -> None:
    image = three_areas(segment.folder / 'a.png')
    assert (
        '2 words (red 75 %, green 25 %) ->'
        in segment(image, '--texts', 'red, green', '--no-background')[1][0]
    )
    assert 'background 25 %' in segment(image, '--texts', 'red, green', '--background')[1][0]
    own = segment(image, '--texts', 'red, green, other')[1][0]
    assert '), background' not in own
    content = json.loads((segment.out / 'a.json').read_text())
    assert content['background'] == 2
    assert 'background 25 %' in segment(image, '--texts', 'red, green, other', '--background')[1][0]


def test_many_words_are_summed_up_in_the_line(demo: ModuleType) -> None:
    found = Segmentation(np.arange(20).reshape(4, 5), tuple(f'w{index}' for index in range(20)))
    assert demo.describe_areas(found).startswith('20 words (w0 5 %, w1 5 %')
    assert demo.describe_areas(found).endswith('and 12 more)')
    assert demo.describe_areas(Segmentation(np.zeros((2, 2), int), ('a',), 0)) == ('no word found, a 100 %')


def test_several_images_are_counted_in_words(segment: Run) -> None:
    images = [three_areas(segment.folder / f'{name}.png') for name in 'ab']
    _, lines, _ = segment(*images, '--texts', 'red, green')
    assert lines[-1].startswith('2 of 2 images, 4 words')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (['--score-thr', '0.5'], '--score-thr selects objects, ToySegmentor is a segmentor'),
        (['--max-per-image', '3'], '--max-per-image selects objects'),
    ],
)
def test_options_of_detectors_are_refused(segment: Run, option: list[str], message: str) -> None:
    code, lines, errors = segment(three_areas(segment.folder / 'a.png'), '--texts', 'red', *option)
    assert (code, lines, len(errors)) == (2, [], 1)
    assert message in errors[0]


def test_options_of_segmentors_are_refused(run: Run, demo: ModuleType) -> None:
    image = red_image(run.folder / 'a.png')
    code, _, errors = run(image, '--texts', 'red', '--no-background')
    assert (code, len(errors)) == (2, 1)
    assert 'are for segmentors, ToyDetector is a detector' in errors[0]
    plain = Run(demo, run.folder, run.capsys, write_toy_segmentor(run.folder))
    code, _, errors = plain(image, '--texts', 'red', '--background')
    assert (code, len(errors)) == (2, 1)
    assert 'ToySegmentor has no background of its own' in errors[0]
