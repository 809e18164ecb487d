"""Image files to arrays: every common kind of file works, and every broken one is named in one line.

The frame of an image is the one a viewer shows: EXIF orientation is applied, as mmcv does by default.
Boxes of an annotation file are in that frame if the annotated width and height say so, which ``LoadImage``
checks.
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

from ..registry import TRANSFORMS

_SIXTEEN_BIT_MAX = 65535


class BrokenImageError(ValueError):
    """An image that is there but cannot be read."""


def read_image(path: str | os.PathLike[str], exif: bool = True) -> np.ndarray:
    """Read an image file as 8-bit RGB.

    Grey, palette, CMYK, 16-bit (the high byte is kept) and transparent images (alpha is dropped, as by OpenCV
    and by CLIP's own preprocessing) all come out alike; of an animation, the first frame.

    Args:
        path: any format Pillow reads.
        exif: turn the pixels as the EXIF orientation says; ``False`` returns them as stored.
    Returns:
        uint8 [H, W, 3], RGB, contiguous.
    Raises:
        FileNotFoundError: no such file.
        BrokenImageError: an empty, truncated, undecodable or non-image file; the message names it.
    """
    with open_image(path) as image:
        return to_rgb(ImageOps.exif_transpose(image) if exif else image)


def decode_image(data: bytes, name: str, exif: bool = True) -> np.ndarray:
    """As :func:`read_image`, for the bytes of a file; ``name`` is what messages call it."""
    if not data:
        raise BrokenImageError(f'image {name} is empty (0 bytes)')
    with _decoded(io.BytesIO(data), f'image {name}') as image:
        return to_rgb(ImageOps.exif_transpose(image) if exif else image)


@contextmanager
def open_image(path: str | os.PathLike[str], what: str = 'image') -> Iterator[Image.Image]:
    """Yield the decoded image of a file; whatever goes wrong names the file in one line.

    Args:
        path: any format Pillow reads.
        what: the file's role, for messages.
    Raises:
        FileNotFoundError: no such file.
        BrokenImageError: an empty, truncated, undecodable or non-image file, or an error of the block.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f'{what} {file} does not exist' if not file.exists() else f'{what} {file} is not a file'
        )
    if file.stat().st_size == 0:
        raise BrokenImageError(f'{what} {file} is empty (0 bytes)')
    with file.open('rb') as stream, _decoded(stream, f'{what} {file}') as image:
        yield image


@contextmanager
def _decoded(stream: IO[bytes], name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(stream) as image:
            image.load()
            yield image
    except Image.UnidentifiedImageError:
        raise BrokenImageError(f'{name} is damaged or of no known image format') from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise BrokenImageError(f'{name} cannot be decoded: {" ".join(str(error).split())}') from error


def find_missing(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are no entry of their folder; each folder is listed once."""
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
    """uint8 [H, W, 3] of a decoded image of any mode.

    Raises:
        ValueError: floating-point pixels, or values beyond 16 bits.
    """
    if image.mode.startswith('I'):  # 16 bits, which older Pillow widens to 32
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > _SIXTEEN_BIT_MAX):
            raise ValueError(f'values {values.min()} to {values.max()} exceed 16 bits')
        grey = (values.astype(np.uint32) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no agreed range; convert it to 8 or 16 bits')
    return np.array(image.convert('RGB'))


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load ``results['img_path']`` by :func:`read_image`; takes the place of mmcv's ``LoadImageFromFile``.

    Adds ``img`` (uint8 or float32 [H, W, 3], BGR as the hosts expect), ``img_shape`` and ``ori_shape`` (H, W)
    in pixels.

    Args:
        to_float32: convert the pixels.
        exif: see :func:`read_image`.
        check_size: refuse an image whose size is not the annotated ``results['height']`` and
            ``results['width']``: its boxes would be in another frame.
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
    """Raise where the annotation gives another (height, width) than ``found``."""
    if results.get('height') is None or results.get('width') is None:
        return
    annotated = (results['height'], results['width'])
    if annotated == tuple(found):
        return
    message = (
        f'image {path} is {found[1]} x {found[0]} pixels, but annotated as {annotated[1]} x {annotated[0]}'
    )
    if annotated == read_image(path, not exif).shape[:2]:
        message += f'; its EXIF orientation explains the difference: load it with exif={not exif}'
    raise ValueError(message)
