"""Drawing: pixels where they belong, labels that stay inside the picture and apart from each other."""

import itertools

import numpy as np
import pytest

from ovd.inference.draw import PALETTE, _overlap, _place_label, draw_instances, draw_segmentation, name_colors

GREY = 100


def grey_image(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def test_colors_do_not_depend_on_order_and_are_distinct() -> None:
    names = [f'thing {index}' for index in range(len(PALETTE))]
    colors = name_colors(names)
    assert colors == name_colors(names[::-1]) == name_colors(names + names)
    assert len(set(colors.values())) == len(PALETTE)
    assert name_colors(['heart']) == name_colors(['heart'])
    assert len(name_colors([f'thing {index}' for index in range(1203)])) == 1203


def test_box_outline_has_the_color_of_its_name() -> None:
    picture = draw_instances(grey_image(600, 800), np.array([[100.0, 200, 300, 400]]), ['heart'])
    assert picture.shape == (600, 800, 3)
    assert picture.dtype == np.uint8
    color = name_colors(['heart'])['heart']
    assert tuple(picture[300, 100]) == tuple(picture[300, 300]) == tuple(picture[400, 250]) == color
    assert tuple(picture[300, 200]) == (GREY,) * 3
    assert tuple(picture[500, 500]) == (GREY,) * 3


def test_input_is_not_changed() -> None:
    image = grey_image(64, 64)
    masks = np.ones((1, 64, 64), bool)
    draw_instances(image, np.array([[0.0, 0, 60, 60]]), ['ring'], np.array([0.5]), masks)
    assert (image == GREY).all()


def test_mask_is_blended_and_the_best_score_shows_on_top() -> None:
    masks = np.zeros((2, 600, 600), bool)
    masks[0, 300:500, 300:500] = True
    masks[1, 400:550, 400:550] = True
    colors = {'a': (200, 0, 0), 'b': (0, 200, 0)}
    boxes = np.array([[300.0, 300, 500, 500], [400, 400, 550, 550]])
    picture = draw_instances(
        grey_image(600, 600), boxes, ['a', 'b'], np.array([0.9, 0.2]), masks, colors, mask_opacity=0.5
    )
    assert tuple(picture[370, 370]) == (150, 50, 50)
    assert tuple(picture[450, 450]) == (150, 50, 50)
    assert tuple(picture[530, 530]) == (50, 150, 50)


@pytest.mark.parametrize(
    ('size', 'expected'),
    [((128, 128), (512, 512)), ((480, 640), (480, 640)), ((3000, 4000), (3000, 4000)), ((1, 1), (480, 480))],
)
def test_small_pictures_are_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    boxes = np.array([[0.0, 0, size[1], size[0]]])
    assert draw_instances(grey_image(*size), boxes, ['cup'], np.array([1.0])).shape == (*expected, 3)


def test_thin_picture_is_not_enlarged_without_bound() -> None:
    assert draw_instances(grey_image(2, 3000), np.zeros((0, 4)), []).shape == (2, 3000, 3)
    assert draw_instances(grey_image(10, 100), np.zeros((0, 4)), []).shape == (190, 1900, 3)


@pytest.mark.parametrize('size', [(40, 60), (480, 640), (1600, 1200)])
def test_label_is_legible_at_any_size(size: tuple[int, int]) -> None:
    """The label's text differs from its ground over at least twelve rows."""
    height, width = size
    boxes = np.array([[0.3 * width, 0.5 * height, 0.8 * width, 0.9 * height]])
    colors = {'heart': (0, 0, 130)}
    picture = draw_instances(grey_image(height, width), boxes, ['heart'], np.array([0.97]), colors=colors)
    white = (picture == 255).all(axis=2)
    rows = np.flatnonzero(white.any(axis=1))
    assert rows[-1] - rows[0] + 1 >= min(picture.shape[:2]) / 70
    assert rows[-1] - rows[0] + 1 >= 9


def test_no_instances_leave_the_image_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 500, 3), dtype=np.uint8)
    empty = draw_instances(image, np.zeros((0, 4)), [], np.zeros(0), np.zeros((0, 480, 500), bool))
    assert np.array_equal(empty, image)


def test_odd_boxes_and_names_are_drawn() -> None:
    boxes = np.array([[-50.0, -50, 1000, 1000], [5, 5, 5, 5], [90, 90, 2000, 2000]])
    names = ['étoile\nrouge', 'x' * 500, 'звезда']
    picture = draw_instances(grey_image(100, 100), boxes, names, np.array([0.1, 0.2, 0.3]))
    assert picture.shape == (500, 500, 3)


def test_labels_stay_inside_and_apart() -> None:
    taken: list[tuple[float, float, float, float]] = []
    for box in [(10, 10, 60, 60), (12, 11, 61, 62), (150, 150, 200, 200), (0, 190, 20, 200)]:
        taken.append(_place_label(box, (40, 12), (200, 200), taken))
    assert all(p[0] >= 0 and p[1] >= 0 and p[2] <= 199 and p[3] <= 199 for p in taken)
    assert all(_overlap(a, b) == 0 for a, b in itertools.combinations(taken, 2))
    assert taken[2] == (150, 138, 190, 150)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': np.zeros((8, 8), np.uint8)}, r'got uint8 \[8, 8\]'),
        ({'image': np.zeros((8, 8, 3), np.float32)}, 'got float32'),
        ({'boxes': np.zeros((2, 4))}, r'\[2, 4\]'),
        ({'boxes': np.array([[0, 0, np.nan, 1]])}, 'box 0 '),
        ({'scores': np.zeros(3)}, r'scores.*\[3\]'),
        ({'masks': np.zeros((1, 8, 9), bool)}, r'\[1, 8, 9\]'),
        ({'masks': np.zeros((1, 8, 8), np.uint8)}, 'got uint8'),
        ({'font': 'no/such.ttf'}, r'no/such\.ttf'),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {'image': np.zeros((8, 8, 3), np.uint8), 'boxes': np.array([[0.0, 0, 4, 4]]), 'names': ['a']}
    with pytest.raises(ValueError, match=message):
        draw_instances(**(arguments | change))


LABELS = np.zeros((600, 800), int)
LABELS[:300, :400] = 1
LABELS[:300, 400:] = 3
LABELS[300:, 400:] = -1


def test_pixels_are_tinted_with_the_color_of_their_word() -> None:
    colors = {'sky': (200, 0, 0), 'tree': (0, 200, 0), 'cat': (0, 0, 200)}
    picture = draw_segmentation(
        grey_image(600, 800), LABELS, ['sky', 'tree', 'cat'], colors, background=3, opacity=0.5
    )
    assert picture.dtype == np.uint8
    assert picture.shape[0] > 600
    assert picture.shape[1] == 800
    assert tuple(picture[500, 100]) == (150, 50, 50)
    assert tuple(picture[100, 100]) == (50, 150, 50)
    assert tuple(picture[100, 600]) == tuple(picture[500, 600]) == (GREY,) * 3
    assert tuple(picture[299, 100]) == (25, 75, 25), 'a dark line between two words'


def test_background_is_tinted_and_listed_on_request() -> None:
    names = ['sky', 'tree', 'cat']
    image = np.full((600, 800, 3), 200, np.uint8)
    plain = draw_segmentation(image, LABELS, names, background=3)
    shown = draw_segmentation(image, LABELS, names, background=3, show_background=True)
    assert tuple(plain[100, 600]) == (200,) * 3
    assert shown[100, 600, 0] < 200
    assert tuple(shown[500, 600]) == (200,) * 3
    greys = [int((picture[600:] == 100).all(axis=2).sum()) for picture in (plain, shown)]
    assert greys[0] < 20
    assert greys[1] > 100


def test_legend_lists_the_words_on_the_image_only() -> None:
    """Swatches have the colours of the two words; of 10,000 absent ones there is no trace."""
    names = [f'thing {index}' for index in range(10000)]
    colors = dict.fromkeys(names, (255, 0, 255)) | {names[7]: (10, 20, 30), names[9999]: (40, 50, 60)}
    labels = np.full((500, 500), 7)
    labels[:50] = 9999
    picture = draw_segmentation(grey_image(500, 500), labels, names, colors)
    legend = picture[500:].reshape(-1, 3)
    assert len(legend) < 500 * 60
    for color in [(10, 20, 30), (40, 50, 60)]:
        assert (legend == color).all(axis=1).any()
    assert not (legend == (255, 0, 255)).all(axis=1).any()


@pytest.mark.parametrize('count', [1, 7, 60, 200])
@pytest.mark.parametrize('width', [480, 1600])
def test_legend_is_as_tall_as_its_words_need(count: int, width: int) -> None:
    """Each word has a line of at least sixteen pixels in one of the columns."""
    names = [f'a rather long name {index}' for index in range(count)]
    labels = np.arange(480 * width).reshape(480, width) % count
    picture = draw_segmentation(grey_image(480, width), labels, names)
    columns = max(1, width // 200)
    assert picture.shape[0] - 480 >= 16 * -(-count // max(columns, 1)) * 0.9
    assert picture.shape[1] == width


def test_a_word_too_long_for_the_picture_is_cut() -> None:
    labels = np.zeros((480, 480), int)
    short = draw_segmentation(grey_image(480, 480), labels, ['x'])
    long = draw_segmentation(grey_image(480, 480), labels, ['x' * 5000])
    assert short.shape == long.shape
    assert (long[480:, -3:] == 255).all()


def test_nothing_to_list_gives_no_legend() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 500, 3), dtype=np.uint8)
    picture = draw_segmentation(image, np.full((480, 500), 2), ['a', 'b'], background=2)
    assert np.array_equal(picture, image)


def test_small_maps_are_enlarged_and_the_input_is_not_changed() -> None:
    image, labels = grey_image(1, 3), np.array([[0, 1, 0]])
    picture = draw_segmentation(image, labels, ['a', 'b'])
    assert picture.shape[1] == 3 * 480
    assert (image == GREY).all()
    assert labels.tolist() == [[0, 1, 0]]


def test_colors_of_large_vocabularies_are_shades() -> None:
    colors = name_colors([f'thing {index}' for index in range(150)])
    assert len(set(colors.values())) == 150


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'labels': np.zeros((8, 9), int)}, r'int64 \[8, 9\]'),
        ({'labels': np.zeros((8, 8))}, 'got float64'),
        ({'labels': np.full((8, 8), 2)}, 'contain 2'),
        ({'image': np.zeros((8, 8), np.uint8)}, r'got uint8 \[8, 8\]'),
    ],
)
def test_bad_maps_are_named(change: dict, message: str) -> None:
    arguments = {'image': np.zeros((8, 8, 3), np.uint8), 'labels': np.zeros((8, 8), int), 'names': ['a', 'b']}
    with pytest.raises(ValueError, match=message):
        draw_segmentation(**(arguments | change))
