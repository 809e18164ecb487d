"""Reading images: every pixel format gives the same picture, every broken file is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from ovd.datasets.images import LoadImage, read_image
from ovd.registry import TRANSFORMS
from tests.helpers import shared_path, write_image

ORIENTATION = 0x0112


@pytest.fixture
def rgb() -> np.ndarray:
    """[6, 9, 3]: no two rows, columns or corners alike."""
    return np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_is_returned_unchanged(tmp_path: Path, rgb: np.ndarray) -> None:
    image = read_image(save(tmp_path / 'a.png', Image.fromarray(rgb)))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, rgb)


@pytest.mark.parametrize('mode', ['L', 'LA', '1', 'P', 'RGBA'])
def test_other_modes_equal_their_rgb_view(tmp_path: Path, rgb: np.ndarray, mode: str) -> None:
    stored = Image.fromarray(rgb).convert(mode)
    image = read_image(save(tmp_path / 'a.png', stored))
    np.testing.assert_array_equal(image, np.array(stored.convert('RGB')))


def test_alpha_is_dropped_not_blended(tmp_path: Path, rgb: np.ndarray) -> None:
    rgba = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / 'a.png', Image.fromarray(rgba))), rgb)


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_sixteen_bit_grey_keeps_the_high_byte(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / name, Image.fromarray(values)))
    np.testing.assert_array_equal(image[..., 0], [[0, 0, 1], [128, 254, 255]])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_sixteen_bit_colour_png(tmp_path: Path, rgb: np.ndarray) -> None:
    cv2 = pytest.importorskip('cv2')
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 256 + 7)
    np.testing.assert_array_equal(read_image(path), rgb)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = Image.new('RGB', (16, 16), (250, 10, 10)).convert('CMYK')
    image = read_image(save(tmp_path / 'a.jpg', red, quality=95))
    assert image.shape == (16, 16, 3)
    assert np.abs(image.reshape(-1, 3).mean(0) - [250, 10, 10]).max() < 6


@pytest.mark.parametrize(
    ('orientation', 'upright'),
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, rgb: np.ndarray, orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / 'a.png', Image.fromarray(rgb), exif=exif)
    np.testing.assert_array_equal(read_image(path, exif=False), rgb)
    np.testing.assert_array_equal(read_image(path), upright(rgb))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no\.jpg'):
        read_image(tmp_path / 'no.jpg')
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path)


def test_zero_byte_file(tmp_path: Path) -> None:
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match=r'a\.jpg'):
        read_image(tmp_path / 'a.jpg')


def test_text_file(tmp_path: Path) -> None:
    (tmp_path / 'a.jpg').write_text('404 not found')
    with pytest.raises(ValueError, match=r'a\.jpg'):
        read_image(tmp_path / 'a.jpg')


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.bmp', 'a.webp', 'a.tif', 'a.gif'])
@pytest.mark.parametrize('kept', [0.02, 0.3, 0.9])
def test_truncated_file_is_named_in_one_line(tmp_path: Path, name: str, kept: float) -> None:
    path = write_image(tmp_path / name, 60, 80)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_image(path)
    assert len(str(caught.value).splitlines()) == 1


def test_floating_point_image_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / 'a.tif', Image.fromarray(np.ones((2, 2), np.float32)))
    with pytest.raises(ValueError):
        read_image(path)


def test_load_image_gives_what_the_host_transform_gives(tmp_path: Path) -> None:
    path = str(write_image(tmp_path / 'a.png', 20, 30))
    ours = TRANSFORMS.build({'type': 'ovd.LoadImage'})({'img_path': path, 'height': 20, 'width': 30})
    theirs = LoadImageFromFile()({'img_path': path})
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    assert ours['img_shape'] == theirs['img_shape'] == ours['ori_shape'] == (20, 30)
    assert LoadImage(to_float32=True)({'img_path': path})['img'].dtype == np.float32


def test_load_image_refuses_another_size_than_annotated(tmp_path: Path) -> None:
    path = str(write_image(tmp_path / 'a.png', 20, 30))
    results = {'img_path': path, 'height': 21, 'width': 30}
    with pytest.raises(ValueError, match=r'a\.png.*30.*20.*30.*21$'):
        LoadImage()(results)
    assert LoadImage(check_size=False)(results)['img_shape'] == (20, 30)
    assert LoadImage()({'img_path': path, 'height': None})['img_shape'] == (20, 30)


def test_load_image_explains_a_size_swapped_by_exif(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = str(save(tmp_path / 'a.png', Image.fromarray(rgb), exif=exif))
    raw = {'img_path': path, 'height': 6, 'width': 9}
    with pytest.raises(ValueError, match='exif=False'):
        LoadImage()(raw)
    assert LoadImage(exif=False)(raw)['img_shape'] == (6, 9)
    assert LoadImage()({'img_path': path, 'height': 9, 'width': 6})['img_shape'] == (9, 6)


def test_coco_photographs_match_their_annotated_sizes_and_opencv() -> None:
    folder = shared_path('data/coco_mini/val2017')
    for path in sorted(folder.glob('*.jpg'))[:10]:
        ours = LoadImage()({'img_path': str(path)})['img'].astype(int)
        theirs = LoadImageFromFile()({'img_path': str(path)})['img'].astype(int)
        assert np.abs(ours - theirs).mean() < 1
