"""Read image files of any common format; errors name the file in one line.

EXIF orientation is applied, as image viewers and mmcv do. Annotated boxes belong to the rotated image if the
annotated width and height do, which ``LoadImage`` checks.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageOps

from ..files import require_file
from ..registry import TRANSFORMS

_SIXTEEN_BIT_MAX = 65535


ImageSource = str | os.PathLike[str] | np.ndarray | Image.Image


class BrokenImageError(ValueError):
    """An image file that exists but cannot be decoded."""


def read_image(path: str | os.PathLike[str], exif: bool = True) -> np.ndarray:
    """Read an image file as 8-bit RGB.

    Grey, palette, CMYK, 16-bit (the high byte is used) and transparent images (alpha is dropped, as by OpenCV
    and CLIP's own preprocessing) are converted; of an animation, the first frame is read.

    Args:
        path: any format Pillow reads.
        exif: rotate the pixels by the EXIF orientation; ``False`` returns them as stored.
    Returns:
        uint8 [H, W, 3], RGB, contiguous.
    Raises:
        FileNotFoundError: no such file.
        BrokenImageError: the file is empty, truncated or not an image.
    """
    with open_image(path) as image:
        return to_rgb(ImageOps.exif_transpose(image) if exif else image)


def decode_image(data: bytes, name: str, exif: bool = True) -> np.ndarray:
    """Decode the bytes of a file, see :func:`read_image`; ``name`` is used in messages."""
    with _decoded(io.BytesIO(data), f'image {name}') as image:
        return to_rgb(ImageOps.exif_transpose(image) if exif else image)


@contextmanager
def open_image(path: str | os.PathLike[str], what: str = 'image') -> Iterator[Image.Image]:
    """Yield the decoded image of a file.

    Args:
        path: any format Pillow reads.
        what: role of the file in messages.
    Raises:
        FileNotFoundError: no such file.
        BrokenImageError: the file is empty, truncated or not an image, or the block fails.
    """
    file = Path(path)
    require_file(file, what)
    with file.open('rb') as stream, _decoded(stream, f'{what} {file}') as image:
        yield image


@contextmanager
def _decoded(stream: IO[bytes], name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(stream) as image:
            image.load()
            yield image
    except Image.UnidentifiedImageError:
        raise BrokenImageError(f'{name} is empty, damaged or of an unknown image format') from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise BrokenImageError(f'{name} cannot be decoded: {" ".join(str(error).split())}') from error


def find_missing(paths: Iterable[str]) -> list[str]:
    """Paths that do not exist; lists each folder once instead of asking for each file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name not in listings[folder]:
            missing.append(path)
    return missing


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a decoded image of any mode to uint8 [H, W, 3].

    Raises:
        ValueError: floating-point pixels, or values beyond 16 bits.
    """
    if image.mode.startswith('I'):  # 16 bits; older versions of Pillow use 32
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > _SIXTEEN_BIT_MAX):
            raise ValueError(f'values {values.min()} to {values.max()} exceed 16 bits')
        grey = (values.astype(np.uint32) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no defined range; convert the image to 8 or 16 bits')
    return np.array(image.convert('RGB'))


def as_rgb(source: ImageSource, name: str = 'image') -> np.ndarray:
    """The pixels of a path, an RGB array or a PIL image: uint8 [H, W, 3], RGB.

    Raises:
        FileNotFoundError, BrokenImageError: see ``read_image``.
        ValueError: anything else, or an array of another type or shape; the message names ``name``.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image(source)
    if isinstance(source, Image.Image):
        try:
            return to_rgb(source)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
    if not isinstance(source, np.ndarray):
        raise ValueError(f'{name}: expected path, array or PIL image, got {type(source).__name__}')
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise ValueError(f'{name}: expected RGB, uint8 [H, W, 3], got {source.dtype} {list(source.shape)}')
    return source


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load ``results['img_path']`` with :func:`read_image`; replaces mmcv's ``LoadImageFromFile``.

    Adds ``img`` (uint8 or float32 [H, W, 3], BGR as the hosts expect), ``img_shape`` and ``ori_shape`` (H, W)
    in pixels.

    Args:
        to_float32: convert the pixels.
        exif: see :func:`read_image`.
        check_size: raise if the size differs from the annotated ``results['height']`` and
            ``results['width']``, because boxes would not match the pixels.
    """

    def __init__(self, to_float32: bool = False, exif: bool = True, check_size: bool = True) -> None:
        self.to_float32 = to_float32
        self.exif = exif
        self.check_size = check_size

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results['img_path']
        image = read_image(path, self.exif)
        if self.check_size:
            _check_size(path, image.shape[:2], results, self.exif)
        image = np.ascontiguousarray(image[..., ::-1])
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        options = f'to_float32={self.to_float32}, exif={self.exif}, check_size={self.check_size}'
        return f'{type(self).__name__}({options})'


def _check_size(path: str, found: tuple[int, ...], results: Mapping[str, Any], exif: bool) -> None:
    """Raise if the annotated size differs from ``found`` (height, width)."""
    if results.get('height') is None or results.get('width') is None:
        return
    annotated = (results['height'], results['width'])
    if annotated == tuple(found):
        return
    message = (
        f'image {path} is {found[1]} x {found[0]} pixels, but annotated as {annotated[1]} x {annotated[0]}'
    )
    if annotated == read_image(path, not exif).shape[:2]:
        message += f'; the difference is its EXIF orientation: load it with exif={not exif}'
    raise ValueError(message)
