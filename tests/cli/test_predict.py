"""``ovd predict`` and ``ovd label`` with toy models: every file they write, and what they do when killed."""

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ovd.cli.main import run
from ovd.inference.pictures.sources import Picture
from ovd.inference.pictures.writers import Record
from ovd.pseudo_labels.photos import PhotoLabelling
from tests.toys.predictor import write_toy
from tests.toys.segmentor import write_toy_segmentor

WIDTH, HEIGHT = 64, 48


def paint(path: Path, color: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (WIDTH, HEIGHT), color).save(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    config, checkpoint = write_toy(tmp_path)
    return ['--config', str(config), '--checkpoint', str(checkpoint), '--device', 'cpu', '--workers', '1']


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A red, a green and a black picture."""
    folder = tmp_path / 'photos'
    for name, color in (('a', (255, 0, 0)), ('b', (0, 153, 0)), ('c', (0, 0, 0))):
        paint(folder / f'{name}.png', color)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def test_predictions_pictures_and_a_table(
    model: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    assert run(['predict', 'red, green', str(photos), *model, '--out', str(out)]) == 0
    entries = read(out / 'predictions.json')
    assert [(entry['image_id'], entry['category_id']) for entry in entries] == [(1, 1), (2, 2)]
    assert entries[0]['bbox'] == [0, 0, WIDTH, HEIGHT]
    assert entries[0]['score'] == pytest.approx(1)
    assert entries[1]['score'] == pytest.approx(0.6)
    assert sorted(path.name for path in out.glob('*.jpg')) == ['a.jpg', 'b.jpg', 'c.jpg']
    assert read(out / 'question.json')['categories'] == [{'id': 1, 'name': 'red'}, {'id': 2, 'name': 'green'}]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['red', '1', '1', '1.00'] in rows
    assert ['green', '1', '1', '0.60'] in rows


def test_thresholds_of_all_and_of_one_name(model: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    words = [
        'predict',
        'red, green, cat',
        str(photos / 'b.png'),
        *model,
        '--out',
        str(out),
        '--pictures',
        'none',
    ]

    def found(*options: str) -> list[int]:
        assert run([*words, *options]) == 0
        return [entry['category_id'] for entry in read(out / 'predictions.json')]

    assert found() == [2]  # green scores 0.6, cat 0.05
    assert found('-t', '0.7') == []
    assert found('-t', '0.7', '-t', 'green=0.5') == [2]
    assert found('--raw') == [2, 3, 1]
    assert found('--raw', '-t', '0.7', '-t', 'cat=0.01') == [3]
    assert found('--raw', '--topk', '1') == [2]
    assert found('--raw', '-t', '0,cat=0.02', '--topk', '2') == [2, 3]
    assert not list(out.glob('*.jpg'))


def test_every_format_reads_back(model: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    formats = 'coco,yolo,voc,labelme,cvat,csv,parquet,masks'
    assert run(['predict', 'red, green', str(photos), *model, '--out', str(out), '--save', formats]) == 0

    coco = COCO(out / 'coco.json')
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert annotation['area'] == WIDTH * HEIGHT
    assert coco.annToMask(annotation).all()
    assert len(coco.loadRes(str(out / 'predictions.json')).anns) == 2

    label, *numbers = (out / 'yolo' / 'labels' / 'b.txt').read_text().split()
    assert label == '1'
    assert max(map(float, numbers)) == pytest.approx(1, abs=0.03)  # the outline runs through pixel centres
    assert (out / 'yolo' / 'labels' / 'c.txt').read_text() == ''
    assert '"green"' in (out / 'yolo' / 'data.yaml').read_text()

    voc = ElementTree.parse(out / 'voc' / 'a.xml').getroot()
    assert voc.findtext('object/name') == 'red'
    assert voc.findtext('object/bndbox/xmax') == str(WIDTH)
    assert voc.findtext('source/database') == 'ovd'

    labelme = read(out / 'labelme' / 'a.json')
    assert (out / 'labelme' / labelme['imagePath']).resolve() == (photos / 'a.png').resolve()
    assert [shape['shape_type'] for shape in labelme['shapes']] == ['polygon']

    cvat = ElementTree.parse(out / 'cvat.xml').getroot()
    assert [image.get('name') for image in cvat.iter('image')] == ['a.png', 'b.png', 'c.png']
    assert [shape.get('label') for shape in cvat.iter('polygon')] == ['red', 'green']

    for table in (pd.read_csv(out / 'objects.csv'), pd.read_parquet(out / 'objects.parquet')):
        assert table['name'].tolist() == ['red', 'green']
        assert table['x2'].tolist() == [WIDTH, WIDTH]

    assert (np.asarray(Image.open(out / 'masks' / 'a.png')) == 1).all()
    assert not np.asarray(Image.open(out / 'masks' / 'c.png')).any()
    assert read(out / 'masks' / 'objects.json')['b'][0]['name'] == 'green'


def test_boxes_without_masks_in_every_format(tmp_path: Path) -> None:
    from ovd.inference.pictures.writers import FORMATS, number

    record = Record(
        'a.png', 'a', 20, 40, [{'name': 'dog', 'label': 0, 'score': 0.5, 'bbox': [4.0, 2.0, 8.0, 6.0]}]
    )
    for write in FORMATS.values():
        write([record], number([record], ['dog']), tmp_path)
    assert (tmp_path / 'yolo' / 'labels' / 'a.txt').read_text().split() == [
        '0', '0.20000', '0.25000', '0.20000', '0.30000',
    ]  # fmt: skip
    (box,) = ElementTree.parse(tmp_path / 'cvat.xml').getroot().iter('box')
    assert [box.get(key) for key in ('xtl', 'ytl', 'xbr', 'ybr')] == ['4.00', '2.00', '12.00', '8.00']
    (shape,) = read(tmp_path / 'labelme' / 'a.json')['shapes']
    assert (shape['shape_type'], shape['points']) == ('rectangle', [[4, 2], [12, 8]])
    numbers = np.asarray(Image.open(tmp_path / 'masks' / 'a.png'))
    assert numbers.sum() == 48
    assert numbers[2:8, 4:12].all()


def test_ids_of_an_annotation_file(model: list[str], photos: Path, tmp_path: Path) -> None:
    annotations = tmp_path / 'instances.json'
    content = {
        'images': [{'id': 70 + index, 'file_name': f'{name}.png'} for index, name in enumerate('cba')],
        'categories': [{'id': 5, 'name': 'Green'}, {'id': 9, 'name': 'red'}],
    }
    annotations.write_text(json.dumps(content))
    out = tmp_path / 'out'
    call = [
        'predict',
        'red, green',
        str(photos),
        *model,
        '--out',
        str(out),
        '--annotations',
        str(annotations),
    ]
    assert run(call) == 0
    found = [(entry['image_id'], entry['category_id']) for entry in read(out / 'predictions.json')]
    assert found == [(72, 9), (71, 5)]
    content['categories'].pop()
    annotations.write_text(json.dumps(content))
    assert run(call) == 2


def test_standard_input_brings_an_image_or_paths(
    model: list[str],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = [
        'predict',
        'red',
        '-',
        *model,
        '--out',
        str(tmp_path / 'out'),
        '--json',
        '-',
        '--pictures',
        'none',
    ]

    def ask(data: bytes) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(data)))
        assert run(call) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (answer,) = ask((photos / 'a.png').read_bytes())
    assert answer['image'] == 'stdin'
    assert [item['name'] for item in answer['instances']] == ['red']
    listed = ask(f'{photos / "a.png"}\n\n{photos / "b.png"}\n'.encode())
    assert [len(line['instances']) for line in listed] == [1, 0]
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'')))
    assert run(call) == 2


def test_a_broken_picture_does_not_stop_the_others(
    model: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / 'aa.png').write_bytes(b'nothing')
    out = tmp_path / 'out'
    assert run(['predict', 'red', str(photos), *model, '--out', str(out), '--batch', '2']) == 2
    assert 'aa.png' in capsys.readouterr().err
    assert [entry['image_id'] for entry in read(out / 'predictions.json')] == [1]
    assert sorted(path.name for path in out.glob('*.jpg')) == ['a.jpg', 'b.jpg', 'c.jpg']


def test_batches_tiles_and_halves_find_the_same(model: list[str], photos: Path, tmp_path: Path) -> None:
    found = []
    for number, options in enumerate((['-q'], ['--batch', '3'], ['--workers', '0'], ['--tile', '32'])):
        out = tmp_path / str(number)
        assert run(['predict', 'red, green', str(photos), *model, '--out', str(out), *options]) == 0
        entries = read(out / 'predictions.json')
        found.append([(entry['image_id'], entry['category_id'], entry['bbox']) for entry in entries])
    assert all(each == found[0] for each in found)


def test_maps_become_masks_and_results_without_scores(tmp_path: Path, photos: Path) -> None:
    config, checkpoint = write_toy_segmentor(tmp_path)
    model = ['--config', str(config), '--checkpoint', str(checkpoint), '--device', 'cpu']
    out = tmp_path / 'out'
    call = ['predict', 'red, green', str(photos / 'a.png'), *model, '--out', str(out)]
    assert run([*call, '--save', 'coco,masks,csv']) == 0
    for entry in read(out / 'predictions.json'):
        assert sorted(entry) == ['category_id', 'image_id', 'segmentation']
    assert run([*call, '-t', '0.5']) == 2
    assert run([*call, '--topk', '3']) == 2


# ovd label


def label(photos: Path, model: list[str], out: Path, *options: str) -> int:
    return run(['label', str(photos), 'red, crimson, green', *model, '--out', str(out), *options])


def test_labels_have_one_name_per_object(model: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / 'labels'
    assert label(photos, model, out, '-t', '0.01', '--to', 'coco,yolo') == 0
    annotations = read(out / 'coco.json')['annotations']
    assert [(item['image_id'], item['category_id']) for item in annotations] == [(1, 1), (2, 3), (3, 2)]
    assert (out / 'yolo' / 'data.yaml').is_file()
    assert not (out / '.parts').exists()
    assert read(out / 'labels.json')['weights_sha256']


def test_a_killed_job_continues_and_ends_in_the_same_bytes(
    model: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    assert label(photos, model, whole, '--part', '1') == 0
    finish = PhotoLabelling.finish
    monkeypatch.setattr(PhotoLabelling, 'finish', lambda self, formats: pytest.fail('not yet'))
    asked = []

    def run_one(self: PhotoLabelling, annotate: Any, on_picture: Any = None) -> None:
        index = self.pending()[0]
        asked.append(index)
        monkeypatch.setattr(self, 'plan', self.plan[: index + 1])
        original(self, annotate, on_picture)
        raise KeyboardInterrupt

    original = PhotoLabelling.run
    monkeypatch.setattr(PhotoLabelling, 'run', run_one)
    assert label(photos, model, out, '--part', '1') == 130
    assert label(photos, model, out, '--part', '1') == 130
    assert asked == [0, 1]
    assert sorted(path.name for path in (out / '.parts').iterdir()) == [
        'header.json', 'part-000000.jsonl', 'part-000001.jsonl',
    ]  # fmt: skip
    assert label(photos, model, out, '--part', '1', '-t', '0.9') == 2  # other settings
    monkeypatch.setattr(PhotoLabelling, 'run', original)
    monkeypatch.setattr(PhotoLabelling, 'finish', finish)
    assert label(photos, model, out, '--part', '1') == 0
    assert (out / 'coco.json').read_bytes() == (whole / 'coco.json').read_bytes()


def test_pictures_that_cannot_be_read_are_listed(model: list[str], photos: Path, tmp_path: Path) -> None:
    (photos / 'd.png').write_bytes(b'nothing')
    assert label(photos, model, tmp_path / 'out') == 2
    (line,) = read(tmp_path / 'out' / 'labels.json')['broken']
    assert 'd.png' in line
    assert len(read(tmp_path / 'out' / 'coco.json')['images']) == 3


def test_parts_cover_the_pictures(tmp_path: Path) -> None:
    pictures = [Picture(f'{index}.png', str(index)) for index in range(5)]
    labelling = PhotoLabelling(tmp_path, pictures, {'a': 1}, ['dog'], part_size=2)
    assert [len(part) for part in labelling.plan] == [2, 2, 1]
    assert labelling.pending() == [0, 1, 2]
    with pytest.raises(ValueError, match='a'):
        PhotoLabelling(tmp_path, pictures, {'a': 2}, ['dog'], part_size=2)
    with pytest.raises(ValueError, match='pictures'):
        PhotoLabelling(tmp_path, pictures[1:], {'a': 1}, ['dog'], part_size=2)


# ovd demo


def test_the_demo_answers_about_pictures_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(['demo', '--words', 'star, heart', '--out', str(tmp_path)]) == 0
    assert len(list(tmp_path.glob('*.png'))) == len(list((tmp_path / 'pictures').glob('*.png'))) == 12
    assert {entry['category_id'] for entry in read(tmp_path / 'predictions.json')} <= {1, 2}
    assert '12 of 12 pictures' in capsys.readouterr().out


def test_photographs_of_the_demo_are_asked_for(tmp_path: Path) -> None:
    assert run(['demo', str(tmp_path)]) == 2
    assert run(['demo', '--photos', str(tmp_path / 'nowhere')]) == 2
    assert run(['demo', '--words', 'dog, dog']) == 2
