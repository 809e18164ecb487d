"""The main job on the embedded data set, from drawn images to an answered query.

Draws OV-Shapes, brings the tiny CLIP, trains a proposal network on base boxes, caches CLIP embeddings of its
proposals, trains ViLD and ViLD-text, compares them and asks for words that never had a box. Each step is one
of the other tools, called with the arguments it prints. A second run repeats only what changed, and continues
what was interrupted; results that are in its way are moved aside, never removed.

    python tools/quickstart.py [--seed 0] [--from-scratch]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ovd.cli.console import SEED, run_tool
from ovd.files import sha256_json, write_json

TOOLS = Path(__file__).resolve().parent
DATA = Path('data/shapes')
WORK = Path('work_dirs')
OUT = WORK / 'quickstart'
SHEET = 12  # pictures
QUERY = 'heart, crescent, fish, anchor, butterfly, umbrella, crown, house, star, key'


def main(argv: Sequence[str] | None = None) -> None:
    """Run every step, print the comparison and name the picture."""
    parser = argparse.ArgumentParser(description='OV-Shapes end to end, ViLD against ViLD-text.')
    parser.add_argument('--seed', type=SEED, default=0, help='of the trainings; the data set has its own')
    parser.add_argument('--from-scratch', action='store_true', help='train the tiny CLIP, too')
    args = parser.parse_args(argv)

    if not Path('tools/train.py').is_file():
        raise FileNotFoundError('tools/train.py does not exist: run from the repository root')
    start = time.perf_counter()
    steps = Steps(OUT)
    clip: list[str] = []
    tower: list[str] = []
    cached_clip: list[str] = []

    # Validation pictures serve to choose a recipe; here the test pictures follow.
    untested = ['train_cfg.val_interval=1000000']

    def training(name: str, options: Sequence[str] = ()) -> tuple[str, list[str], Path]:
        call = [
            f'configs/{name}.py',
            '--seed',
            str(args.seed),
            '--resume',
            *with_options([*untested, *options]),
        ]
        return 'train.py', call, WORK / name

    def train(title: str, name: str, options: Sequence[str] = ()) -> None:
        steps.run(title, *training(name, options))

    def test(title: str, name: str, is_trained: bool = True) -> dict[str, Any]:
        report = OUT / f'{name}.json'
        weights = [str(WORK / name / 'latest.pth')] if is_trained else []
        call = [f'configs/{name}.py', *weights, '--out', str(report)]
        steps.run(title, 'test.py', call + with_options(clip if is_trained else tower), report)
        content: dict[str, Any] = json.loads(report.read_text(encoding='utf-8'))
        return content

    steps.run('draw OV-Shapes', 'make_shapes.py', [], DATA / 'manifest.json')
    if args.from_scratch:
        train('train the tiny CLIP on captions', 'clip_tiny_shapes')
        folder = WORK / 'clip_tiny_shapes' / 'clip'
        clip = [f'model.text.encoder.model={folder}']
        tower = [f'model.tower.model={folder}']
        cached_clip = [f'region_cache.image_encoder.model={folder}']
    import torch

    # From here on a loader or another training is at work beside each training.
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(1)
    train('train a proposal network on base boxes', 'rpn_shapes')
    with steps.beside('train ViLD-text, the control', *training('vild_text_shapes', clip)):
        call = ['configs/vild_shapes.py', *with_options(cached_clip)]
        steps.run(
            'cache CLIP embeddings of the proposals', 'cache_clip_regions.py', call, DATA / 'regions_train'
        )
        train('train ViLD', 'vild_shapes', clip)
    weights = str(WORK / 'vild_shapes' / 'latest.pth')
    call = ['configs/vild_shapes.py', weights, '--max-images', '150', *with_options(clip)]
    call += ['--annotations', str(DATA / 'annotations' / 'instances_val.json'), '--images', str(DATA / 'val')]
    answering = WORK / 'vild_shapes' / 'answering.json'
    steps.run('find the threshold of ViLD on validation pictures', 'calibrate_answers.py', call, answering)
    reports = {
        'ViLD-text': test('test ViLD-text', 'vild_text_shapes'),
        'ViLD': test('test ViLD', 'vild_shapes'),
        'CLIP on segments, no training': test(
            'test the tiny CLIP on segments of even colour', 'clip_detector_shapes', is_trained=False
        ),
    }
    picture = picture_of_novel_shapes()
    call = [str(picture), '--texts', QUERY, '--out', str(OUT), *with_options(clip)]
    steps.run('ask for words, most of them without a box in training', 'demo.py', call, OUT / picture.name)

    sheet = OUT / 'answers.png'
    right, shown, there = draw_sheet(sheet, weights, clip)
    table = comparison(reports)
    (OUT / 'table.md').write_text(table + '\n', encoding='utf-8')
    print(f'\n{table}\n\ntable    {OUT / "table.md"}\npicture  {OUT / picture.name}')
    print(f'sheet    {sheet}: {SHEET} test pictures, {right} of {shown} answers right, {there} objects there')
    print(f'{time.perf_counter() - start:.0f} s in all')


def draw_sheet(path: Path, weights: str, options: Sequence[str]) -> tuple[int, int, int]:
    """Draw the answers on the first test pictures, right ones green, wrong ones red, missed objects grey.

    Returns:
        numbers of right answers, of answers and of objects.
    """
    import numpy as np

    from ovd.cli.console import parse_value
    from ovd.config import load_config
    from ovd.datasets.images import read_image
    from ovd.files import atomic_path
    from ovd.inference.contact_sheet import contact_sheet, mark_answers
    from ovd.inference.predictor import Predictor

    content = json.loads((DATA / 'annotations' / 'instances_test.json').read_text(encoding='utf-8'))
    names = {category['id']: category['name'] for category in content['categories']}
    objects: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        box = np.array([x, y, x + width, y + height])
        objects[annotation['image_id']].append((names[annotation['category_id']], box))
    overrides = {key: parse_value(value) for key, _, value in (option.partition('=') for option in options)}
    predictor = Predictor(load_config('configs/vild_shapes.py', overrides), weights)
    drawn, texts = [], []
    right = shown = there = 0
    for image in content['images'][:SHEET]:
        pixels = read_image(DATA / 'test' / image['file_name'])
        (answer,) = predictor.predict(pixels)
        picture, (good, bad, missed) = mark_answers(pixels, answer, objects[image['id']])
        drawn.append(picture)
        texts.append([f'{good} right, {bad} wrong, {missed} missed'])
        right, shown, there = right + good, shown + good + bad, there + good + missed
    with atomic_path(path) as temporary:
        contact_sheet(drawn, texts).save(temporary, format='PNG')
    return right, shown, there


def with_options(options: Sequence[str]) -> list[str]:
    """``--cfg-options`` and the options, or nothing."""
    return ['--cfg-options', *options] if options else []


class Steps:
    """Runs tools in order and remembers, on disk, with which arguments and configs each one ended.

    Args:
        folder: receives ``steps.json``.
    """

    def __init__(self, folder: Path):
        self.path = folder / 'steps.json'
        self.known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.state = ''

    def run(self, title: str, tool: str, call: Sequence[str], product: Path) -> None:
        """Call ``tools/<tool>`` unless the same call, after the same predecessors, has made ``product``.

        A folder that another call left there is moved aside first; what the same call left unfinished is
        continued.
        """
        if self._is_done(title, tool, call, product):
            return
        start = time.perf_counter()
        if load_main(tool)(list(call)):
            raise ValueError(f'step "{title}" failed: python tools/{tool} {" ".join(map(quoted, call))}')
        self._remember(title)
        print(f'  {title}: {time.perf_counter() - start:.0f} s', flush=True)

    @contextmanager
    def beside(self, title: str, tool: str, call: Sequence[str], product: Path) -> Iterator[None]:
        """Run a step in a process of its own while the block runs: two cores, two trainings."""
        if self._is_done(title, tool, call, product):
            yield
            return
        log = self.path.parent / f'{product.name}.log'
        print(f'  in the background, see {log}', flush=True)
        with log.open('w') as output:
            environment = {'OMP_NUM_THREADS': '1', **os.environ}
            command = [sys.executable, str(TOOLS / tool), *call]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield
            if process.wait():
                raise ValueError(f'step "{title}" failed, see {log}')
            self._remember(title)
        finally:
            process.kill()
            process.wait()

    def _is_done(self, title: str, tool: str, call: Sequence[str], product: Path) -> bool:
        from ovd.config import load_config

        configs = [load_config(part).to_dict() for part in call if part.startswith('configs/')]
        self.state = sha256_json([self.state, tool, list(call), configs])
        print(f'\n{title}\n  python tools/{tool} {" ".join(map(quoted, call))}', flush=True)
        known = self.known.get(title, {})
        if known.get('state') == self.state and known['finished'] and product.exists():
            print(f'  done before: {product}')
            return True
        if known.get('state') != self.state:
            move_aside(product)
        self.known[title] = {'state': self.state, 'finished': False}
        write_json(self.path, self.known)
        return False

    def _remember(self, title: str) -> None:
        self.known[title]['finished'] = True
        write_json(self.path, self.known)


def move_aside(product: Path) -> None:
    """Rename a folder, if it is there, to the first free of ``name.1``, ``name.2``, ...; say so."""
    if not product.is_dir():
        return
    number = 1
    while (aside := product.with_name(f'{product.name}.{number}')).exists():
        number += 1
    product.rename(aside)
    print(f'  what was in {product} is now in {aside}')


def quoted(part: str) -> str:
    """An argument as it is typed into a shell."""
    return f'"{part}"' if ' ' in part else part


def load_main(tool: str) -> Callable[[list[str]], int | None]:
    """The ``main`` of another tool: all steps share one process, and so the time its imports take."""
    spec = importlib.util.spec_from_file_location(f'ovd_tools_{Path(tool).stem}', TOOLS / tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int | None] = module.main
    return main


def picture_of_novel_shapes() -> Path:
    """The test picture that shows the most different novel shapes."""
    content = json.loads((DATA / 'annotations' / 'instances_test.json').read_text(encoding='utf-8'))
    novel = set(json.loads((DATA / 'manifest.json').read_text(encoding='utf-8'))['novel'])
    names = {category['id']: category['name'] for category in content['categories']}
    shown: dict[int, set[str]] = defaultdict(set)
    for annotation in content['annotations']:
        shown[annotation['image_id']] |= {names[annotation['category_id']]} & novel
    best = max(content['images'], key=lambda image: len(shown[image['id']]))
    return DATA / 'test' / best['file_name']


def comparison(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown tables of AP50 in percent: base, novel and all classes, then class by class."""
    lines = ['| AP50 | base | novel | all |', '|---|---|---|---|']
    for title, report in reports.items():
        values = [report['metrics'][f'bbox/AP50{part}'] for part in ('_base', '_novel', '')]
        lines.append(f'| {title} | {" | ".join(percent(value) for value in values)} |')
    lines += ['', f'| class | | {" | ".join(reports)} |', '|---|---|' + '---|' * len(reports)]
    for rows in zip(*(report['per_class'] for report in reports.values())):
        cells = ' | '.join(percent(row['bbox_AP50']) for row in rows)
        lines.append(f'| {rows[0]["name"]} | {rows[0]["group"]} | {cells} |')
    return '\n'.join(lines)


def percent(value: float | None) -> str:
    """A fraction in percent; a dash where there is none."""
    return '-' if value is None else f'{100 * value:.1f}'


if __name__ == '__main__':
    sys.exit(run_tool(main))
