"""OV-Shapes: silhouettes, scenes, captions and the files on disk."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from ovd.shapes.captions import describe, with_article, write_captions
from ovd.shapes.files import ShapesPlan, is_drawn, write_shapes
from ovd.shapes.outlines import OUTLINES, TEMPLATE_EXTENT, TEMPLATE_SIZE, silhouette
from ovd.shapes.scenes import (
    COLORS,
    MAX_OBJECTS,
    OBJECT_EXTENT,
    STREAMS,
    TEXTURES,
    Scene,
    Shape,
    draw_pair_crops,
    draw_portrait,
    draw_scene,
    random_stream,
)
from ovd.text.vocabulary import Vocabulary
from tools.make_shapes import main

NOUNS = Vocabulary.parse('shapes').names


# --- silhouettes --------------------------------------------------------------------------------------------


def test_vocabulary_has_an_outline_for_each_noun() -> None:
    vocabulary = Vocabulary.parse('shapes')
    assert set(vocabulary.names) == set(OUTLINES)
    assert len(vocabulary) == 24
    assert sum(vocabulary.is_novel) == 8


@pytest.mark.parametrize('noun', NOUNS)
def test_silhouette_fills_its_template(noun: str) -> None:
    template = silhouette(noun)
    assert template.shape == (TEMPLATE_SIZE, TEMPLATE_SIZE)
    rows, columns = np.flatnonzero(template.any(1)), np.flatnonzero(template.any(0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert max(height, width) == TEMPLATE_EXTENT
    assert abs(rows[0] + rows[-1] - (TEMPLATE_SIZE - 1)) <= 1
    assert abs(columns[0] + columns[-1] - (TEMPLATE_SIZE - 1)) <= 1


def test_silhouettes_differ_under_rotation_and_mirroring() -> None:
    """At 24 pixels, no two nouns overlap by more than 85 % under any rotation up to 40 degrees either way."""

    def variants(noun: str) -> list[np.ndarray]:
        small = cv2.resize(silhouette(noun), (24, 24), interpolation=cv2.INTER_AREA)
        turned = [
            cv2.warpAffine(small, cv2.getRotationMatrix2D((11.5, 11.5), angle, 1.0), (24, 24)) > 127
            for angle in range(-80, 81, 20)  # the angle between two objects reaches 80 degrees
        ]
        return turned + [mask[:, ::-1] for mask in turned]

    for first, second in combinations(NOUNS, 2):
        upright = cv2.resize(silhouette(first), (24, 24), interpolation=cv2.INTER_AREA) > 127
        overlap = max((upright & other).sum() / (upright | other).sum() for other in variants(second))
        assert overlap < 0.85, (first, second, overlap)


def test_unknown_noun_is_named() -> None:
    with pytest.raises(KeyError, match='unicorn'):
        silhouette('unicorn')


# --- scenes -------------------------------------------------------------------------------------------------


def same(first: Scene, second: Scene) -> bool:
    return np.array_equal(first.image, second.image) and [s.box for s in first.shapes] == [
        s.box for s in second.shapes
    ]


def test_a_scene_depends_on_seed_split_and_index_only() -> None:
    scene = draw_scene(NOUNS, 0, 'val', 5)
    draw_scene(NOUNS, 0, 'val', 6)
    np.random.seed(7)  # noqa: NPY002  (the global generator plays no part)
    assert same(scene, draw_scene(NOUNS, 0, 'val', 5))
    others = [(1, 'val', 5), (0, 'train', 5), (0, 'test', 5), (0, 'val', 6)]
    assert not any(same(scene, draw_scene(NOUNS, *other)) for other in others)


def test_streams_are_distinct() -> None:
    assert len(set(STREAMS.values())) == len(STREAMS)
    firsts = {random_stream(0, split, 3).random() for split in STREAMS}
    assert len(firsts) == len(STREAMS)
    with pytest.raises(ValueError, match="'validation'"):
        random_stream(0, 'validation', 0)
    with pytest.raises(ValueError):
        random_stream(0, 'val', -1)


def test_scenes_are_what_they_say() -> None:
    """Masks are disjoint, boxes tight, objects of the stated size, and their colour is the one named."""
    shapes = []
    for index in range(40):
        scene = draw_scene(NOUNS, 1, 'train', index)
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.shapes) <= MAX_OBJECTS
        assert np.sum([shape.mask for shape in scene.shapes], axis=0).max() <= 1
        for shape in scene.shapes:
            x0, y0, x1, y1 = (int(side) for side in shape.box)
            assert shape.mask[y0:y1, x0:x1].sum() == shape.mask.sum()
            sides = shape.mask[y0], shape.mask[y1 - 1], shape.mask[:, x0], shape.mask[:, x1 - 1]
            assert all(side.any() for side in sides)
            assert 0.6 * OBJECT_EXTENT[0] * 128 < max(x1 - x0, y1 - y0) < 1.45 * OBJECT_EXTENT[1] * 128
            if shape.texture == 'plain':
                seen = np.median(scene.image[shape.mask].astype(float), axis=0)
                distances = {name: np.abs(seen - color).sum() for name, color in COLORS.items()}
                assert min(distances, key=lambda name: distances[name]) == shape.color
            shapes.append(shape)
    assert {shape.texture for shape in shapes} == set(TEXTURES)
    assert {shape.color for shape in shapes} == set(COLORS)
    assert len({shape.noun for shape in shapes}) > 20


def test_objects_scale_with_the_picture() -> None:
    small, large = draw_scene(NOUNS, 0, 'val', 3, size=128), draw_scene(NOUNS, 0, 'val', 3, size=256)
    assert large.image.shape == (256, 256, 3)
    assert small.shapes[0].noun == large.shapes[0].noun
    ratio = large.shapes[0].mask.sum() / small.shapes[0].mask.sum()
    assert 3 < ratio < 5


def test_pairs_say_what_they_show() -> None:
    kinds = set()
    for index in range(60):
        pair = draw_portrait(NOUNS, 0, index)
        assert pair.image.shape == (64, 64, 3)
        assert bool(pair.relation) == (len(pair.shapes) == 2)
        kinds.add(len(pair.shapes))
    assert kinds == {0, 1, 2}
    crops = draw_pair_crops(NOUNS, 0, 3)
    assert all(crop.image.shape == (64, 64, 3) and len(crop.shapes) == 1 for crop in crops)


# --- captions -----------------------------------------------------------------------------------------------


def toy_scene(*shapes: tuple[str, str, str, tuple[float, float, float, float]]) -> Scene:
    mask = np.zeros((100, 100), np.bool_)
    return Scene(
        np.zeros((100, 100, 3), np.uint8), tuple(Shape(n, c, t, box, mask) for n, c, t, box in shapes)
    )


def test_descriptions() -> None:
    assert describe('star', 'red', 'plain') == 'red star'
    assert describe('star', 'red', 'striped') == 'striped red star'
    assert with_article('orange ring') == 'an orange ring'
    assert with_article('red arrow') == 'a red arrow'


def test_captions_of_one_shape() -> None:
    scene = toy_scene(('anchor', 'orange', 'dotted', (0, 40, 20, 60)))
    texts = [caption.text for caption in write_captions(scene, np.random.default_rng(0))]
    assert texts == [
        'an anchor',
        'a picture of an orange anchor',
        'a dotted orange anchor',
        'an orange anchor on the left',
        'there is a dotted orange anchor in the scene',
    ]


def test_captions_of_two_shapes_and_their_spans() -> None:
    above, below = (40.0, 0.0, 60.0, 20.0), (42.0, 70.0, 66.0, 96.0)
    scene = toy_scene(('star', 'red', 'plain', above), ('star', 'blue', 'striped', below))
    captions = write_captions(scene, np.random.default_rng(0))
    relation = captions[-1]
    assert relation.text in ('a red star above a star', 'a striped blue star below a star')
    for caption in captions:
        for phrase in caption.phrases:
            said = caption.text[phrase.start : phrase.end]
            expected = {'a star': (above, below), 'a red star': (above,)}
            assert phrase.boxes == expected.get(said, (below,)), caption.text
    assert [len(caption.phrases) for caption in captions] == [2, 2, 2, 1, 2]


@pytest.mark.parametrize(
    ('box', 'place'),
    [
        ((0, 40, 20, 60), 'on the left'),
        ((80, 40, 100, 60), 'on the right'),
        ((40, 0, 60, 20), 'at the top'),
        ((40, 80, 60, 100), 'at the bottom'),
        ((45, 45, 60, 60), 'in the middle'),
    ],
)
def test_places(box: tuple[float, float, float, float], place: str) -> None:
    caption = write_captions(toy_scene(('key', 'red', 'plain', box)), np.random.default_rng(0))[3]
    assert caption.text == f'a red key {place}'


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(folder, ShapesPlan({'train': 12, 'val': 2, 'test': 0}, seed=3))
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_coco_tools_read_the_annotations(drawn: Path) -> None:
    coco = COCO(str(drawn / 'annotations/instances_train_all.json'))
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(NOUNS)
    assert coco.getCatIds() == list(range(1, 25))
    for index in range(12):
        scene = draw_scene(NOUNS, 3, 'train', index)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1]))
        assert len(annotations) == len(scene.shapes)
        for annotation, shape in zip(annotations, scene.shapes):
            x, y, width, height = annotation['bbox']
            assert (x, y, x + width, y + height) == shape.box
            assert np.array_equal(coco.annToMask(annotation).astype(bool), shape.mask)
            assert annotation['area'] == shape.mask.sum()
            assert NOUNS[annotation['category_id'] - 1] == shape.noun
            assert annotation['attributes'] == {'color': shape.color, 'texture': shape.texture}


def test_training_boxes_are_base_only(drawn: Path) -> None:
    vocabulary = Vocabulary.parse('shapes')
    base = {name for name, novel in zip(vocabulary.names, vocabulary.is_novel) if not novel}
    everything, training = (
        read(drawn / f'annotations/instances_{name}.json') for name in ('train_all', 'train')
    )
    names = {category['id']: category['name'] for category in everything['categories']}
    assert {category['name'] for category in training['categories']} == base
    expected = [a for a in everything['annotations'] if names[a['category_id']] in base]
    assert training['annotations'] == expected
    assert len(expected) < len(everything['annotations'])
    assert training['images'] == everything['images']
    assert read(drawn / 'annotations/instances_val.json') == read(
        drawn / 'annotations/instances_val_all.json'
    )


def test_pictures_and_semantic_maps(drawn: Path) -> None:
    for index in range(12):
        scene = draw_scene(NOUNS, 3, 'train', index)
        image = cv2.imread(str(drawn / f'train/{index:06d}.png'))
        assert np.array_equal(image[..., ::-1], scene.image)
        semantic = cv2.imread(str(drawn / f'semantic/train/{index:06d}.png'), cv2.IMREAD_UNCHANGED)
        expected = np.zeros((128, 128), np.uint8)
        for shape in scene.shapes:
            expected[shape.mask] = NOUNS.index(shape.noun) + 1
        assert np.array_equal(semantic, expected)


def test_captions_and_phrases(drawn: Path) -> None:
    captions = read(drawn / 'annotations/captions_train.json')
    assert len(captions['annotations']) == 5 * 12
    assert len({annotation['id'] for annotation in captions['annotations']}) == 5 * 12
    lines = (drawn / 'annotations/phrases_train.jsonl').read_text().splitlines()
    assert len(lines) == 5 * 12
    for line, annotation in zip(lines, captions['annotations']):
        record = json.loads(line)
        assert record['grounding']['caption'] == annotation['caption']
        assert record['filename'] == f'{annotation["image_id"] - 1:06d}.png'
        for region in record['grounding']['regions']:
            ((start, end),) = region['tokens_positive']
            assert annotation['caption'][start:end] == region['phrase']
            assert region['bbox']


def test_drawing_twice_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, ShapesPlan({'train': 12, 'val': 2, 'test': 0}, seed=3))
    files = sorted(path.relative_to(drawn) for path in drawn.rglob('*') if path.is_file())
    assert len(files) == 2 * 14 + 4 * 3 + 1
    assert all((drawn / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_manifest_tells_a_finished_folder(drawn: Path, tmp_path: Path) -> None:
    plan = ShapesPlan({'train': 12, 'val': 2, 'test': 0}, seed=3)
    assert is_drawn(drawn, plan)
    assert not is_drawn(drawn, ShapesPlan({'train': 12, 'val': 2, 'test': 0}, seed=4))
    assert not is_drawn(tmp_path, plan)


def test_an_interrupted_drawing_is_not_finished(tmp_path: Path) -> None:
    plan = ShapesPlan({'train': 2, 'val': 2, 'test': 2})
    write_shapes(tmp_path, plan)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path, plan, on_picture=interrupt)
    assert not is_drawn(tmp_path, plan)


@pytest.mark.parametrize('content', ['{"images": 3}', '[]', 'no JSON'])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / 'manifest.json').write_text(content)
    plan = ShapesPlan({'train': 1, 'val': 0, 'test': 0})
    for use in (is_drawn, write_shapes):
        with pytest.raises(ValueError, match=r'manifest\.json'):
            use(tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ['manifest.json']
    assert (tmp_path / 'manifest.json').read_text() == content


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'counts': {'train': 1}}, r"\['train'\]"),
        ({'size': 32}, 'got 32'),
    ],
)
def test_bad_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesPlan(**{'counts': {'train': 1, 'val': 1, 'test': 1}, **changes})


def test_tool_draws_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ['--out', str(tmp_path), '--train', '2', '--val', '1', '--test', '1', '--seed', '5']
    main(arguments)
    assert 'wrote 4 pictures' in capsys.readouterr().out
    before = (tmp_path / 'manifest.json').stat().st_mtime_ns
    main(arguments)
    assert 'already holds' in capsys.readouterr().out
    assert (tmp_path / 'manifest.json').stat().st_mtime_ns == before
