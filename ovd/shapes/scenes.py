"""OV-Shapes: pictures of coloured, textured shapes on a noisy background, drawn from a seed.

A picture depends only on (seed, split, index), not on the order of drawing or the process. Splits use
independent random streams, so that no training picture is repeated in another split.
Reading order: ``draw_scene`` (pictures of detection), ``draw_pair_crops`` and ``draw_portrait`` (pictures of
the tiny CLIP's training set), then the drawing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from ..options import check_option
from .outlines import TEMPLATE_EXTENT, TEMPLATE_SIZE, silhouette

VERSION = 1  # increase when drawings change: part of cache keys and of the manifest
STREAMS = {name: code for code, name in enumerate(('train', 'val', 'test', 'pairs'))}
STREAMS |= {
    f'{name} words': code + 8 for name, code in STREAMS.items()
}  # separate streams, so that the captions do not affect the pictures
COLORS: dict[str, tuple[int, int, int]] = {
    'red': (216, 30, 36),
    'orange': (242, 138, 20),
    'yellow': (246, 226, 40),
    'green': (34, 156, 52),
    'cyan': (50, 210, 220),
    'blue': (38, 64, 208),
    'purple': (128, 36, 160),
    'pink': (250, 140, 190),
    'white': (244, 244, 240),
    'black': (22, 22, 26),
}
TEXTURES = ('plain', 'striped', 'dotted')
_TEXTURE_ODDS = (0.6, 0.25, 0.15)
MAX_OBJECTS = 5
OBJECT_EXTENT = (0.21, 0.44)  # longer side of an object, as a fraction of the picture's side
MAX_ROTATION = 40.0  # degrees
MAX_OVERLAP = 0.12  # of the smaller of two boxes

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """One object: its attributes and its visible part."""

    noun: str
    color: str
    texture: str
    box: tuple[float, float, float, float]  # xyxy, pixels, tight around the visible part
    mask: NDArray[np.bool_]  # [H, W], visible part


@dataclass(frozen=True)
class Scene:
    """A picture, RGB [H, W, 3], and its shapes in the order they were painted."""

    image: Image
    shapes: tuple[Shape, ...]


def random_stream(seed: int, split: str, index: int) -> np.random.Generator:
    """Random generator of one picture, independent of those of other (seed, split, index)."""
    check_option('split', split, STREAMS)
    return np.random.default_rng((seed, STREAMS[split], index))


def draw_scene(nouns: Sequence[str], seed: int, split: str, index: int, size: int = 128) -> Scene:
    """Draw one picture of 1 to 5 shapes, ``size`` pixels on a side.

    Args:
        nouns: classes to choose from, with equal probabilities.
        seed, split, index: identify the picture; ``split`` is 'train', 'val', 'test' or 'pairs'.
    """
    return _draw_scene(nouns, random_stream(seed, split, index), size)


def _draw_scene(nouns: Sequence[str], random: np.random.Generator, size: int) -> Scene:
    image = _draw_background(random, size)
    painted: list[tuple[str, str, str, NDArray[np.bool_]]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(int(random.integers(1, MAX_OBJECTS + 1))):
        noun, color, texture = _draw_attributes(nouns, random)
        pose = _Pose.random(random, extent=size * random.uniform(*OBJECT_EXTENT))
        width, height = pose.footprint(noun)
        for _attempt in range(20):
            x = random.uniform(width / 2 + 1, size - width / 2 - 1)
            y = random.uniform(height / 2 + 1, size - height / 2 - 1)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            if all(_overlap(box, other) <= MAX_OVERLAP for other in boxes):
                mask = _paint(image, noun, color, texture, pose, (x, y), random)
                for earlier in painted:
                    earlier[3][mask] = False
                painted.append((noun, color, texture, mask))
                boxes.append(box)
                break
    shapes = tuple(Shape(n, c, t, _tight_box(mask), mask) for n, c, t, mask in painted)
    return Scene(_add_noise(image, random), shapes)


@dataclass(frozen=True)
class CaptionedPicture:
    """One square picture of the image-text training set and its content.

    ``shapes`` holds (noun, color, texture) per object, and is empty for background only. ``relation`` is that
    of the first to the second of two objects.
    """

    image: Image
    shapes: tuple[tuple[str, str, str], ...]
    relation: str = ''


def draw_pair_crops(nouns: Sequence[str], seed: int, index: int, size: int = 64) -> list[CaptionedPicture]:
    """Crop every object of one scene, with random context, stretched to a square of ``size`` pixels."""
    random = random_stream(seed, 'pairs', index)
    scene = _draw_scene(nouns, random, 128)
    return [
        CaptionedPicture(
            _random_crop(scene.image, shape.box, size, random), ((shape.noun, shape.color, shape.texture),)
        )
        for shape in scene.shapes
    ]


def draw_portrait(nouns: Sequence[str], seed: int, index: int, size: int = 64) -> CaptionedPicture:
    """Draw one large shape, two shapes with a relation, or only background."""
    random = random_stream(seed, 'pairs', index)
    image = _draw_background(random, size)
    kind = random.choice(3, p=(0.76, 0.18, 0.06))
    shapes: list[tuple[str, str, str]] = []
    relation = ''
    if kind == 0:
        shapes.append(_draw_attributes(nouns, random))
        pose = _Pose.random(random, extent=size * random.uniform(0.5, 0.98))
        x, y = size / 2 + random.uniform(-0.08, 0.08, 2) * size
        _paint(image, *shapes[0], pose, (x, y), random)
    elif kind == 1:
        shapes += [_draw_attributes(nouns, random) for _ in range(2)]
        relation = ('above', 'below', 'left of', 'right of')[random.integers(4)]
        near, far = 0.26 * size, 0.74 * size
        first, second = (near, far) if relation in ('above', 'left of') else (far, near)
        for shape, position in zip(shapes, (first, second)):
            pose = _Pose.random(random, extent=size * random.uniform(0.36, 0.5))
            drift = size / 2 + random.uniform(-0.15, 0.15) * size
            x, y = (drift, position) if relation in ('above', 'below') else (position, drift)
            _paint(image, *shape, pose, (x, y), random)
    picture = _add_noise(image, random)
    if random.random() < 0.4:
        small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        picture = np.asarray(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)
    return CaptionedPicture(picture, tuple(shapes), relation)


@dataclass(frozen=True)
class _Pose:
    """Size, rotation, stretch and mirroring of a silhouette."""

    extent: float  # longer side before rotation, pixels
    angle: float  # degrees
    aspect: float
    mirrored: bool

    @classmethod
    def random(cls, random: np.random.Generator, extent: float) -> '_Pose':
        angle, aspect = random.uniform(-MAX_ROTATION, MAX_ROTATION), random.uniform(0.9, 1.12)
        return cls(extent, angle, aspect, bool(random.random() < 0.5))

    def matrix(self) -> NDArray[np.float64]:
        """Matrix from offsets to the template's centre to offsets to the shape's centre, in pixels."""
        turn = np.deg2rad(self.angle)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        stretch = np.diag([(-1 if self.mirrored else 1) * np.sqrt(self.aspect), 1 / np.sqrt(self.aspect)])
        return rotation @ stretch * (self.extent / TEMPLATE_EXTENT)

    def footprint(self, noun: str) -> tuple[float, float]:
        """Width and height of the box around the rotated silhouette, centred on it."""
        width, height = 2 * np.abs(self.matrix() @ _hull(noun)).max(axis=1)
        return float(width), float(height)


@cache
def _hull(noun: str) -> NDArray[np.float64]:
    """Corners [2, n] of the silhouette's convex hull, relative to the template's centre."""
    points = cv2.findNonZero((silhouette(noun) > 127).astype(np.uint8))
    return cv2.convexHull(points)[:, 0].T.astype(np.float64) - (TEMPLATE_SIZE - 1) / 2


def _draw_attributes(nouns: Sequence[str], random: np.random.Generator) -> tuple[str, str, str]:
    noun = nouns[int(random.integers(len(nouns)))]
    color = tuple(COLORS)[random.integers(len(COLORS))]
    return noun, color, TEXTURES[random.choice(len(TEXTURES), p=_TEXTURE_ODDS)]


def _draw_background(random: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Grey background with soft spots and sometimes faint stripes; [size, size, 3] in 0..255."""
    tint = random.uniform(95, 165) + random.uniform(-14, 14, 3)
    blotches = random.normal(0, 13, (4, 4, 3)).astype(np.float32)
    soft = np.asarray(cv2.resize(blotches, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
    background = soft + tint.astype(np.float32)
    if random.random() < 0.3:
        background += (random.uniform(4, 12) * _stripes(size, size, random.uniform(5, 14), random))[..., None]
    return background


def _stripes(height: int, width: int, period: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Sine wave in -1..1 with a random direction; ``period`` in pixels."""
    direction, phase = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi)
    x = np.arange(width, dtype=np.float32) * np.float32(2 * np.pi / period * np.cos(direction))
    y = np.arange(height, dtype=np.float32) * np.float32(2 * np.pi / period * np.sin(direction))
    return np.sin(x[None] + y[:, None] + np.float32(phase))


def _paint(
    image: NDArray[np.float32],
    noun: str,
    color: str,
    texture: str,
    pose: _Pose,
    center: tuple[float, float],
    random: np.random.Generator,
) -> NDArray[np.bool_]:
    """Blend a shape into ``image`` [H, W, 3] in place; return its mask [H, W]."""
    height, width = image.shape[:2]
    half_width, half_height = (side / 2 + 1.5 for side in pose.footprint(noun))
    left, top = max(0, int(center[0] - half_width)), max(0, int(center[1] - half_height))
    right, bottom = min(width, int(center[0] + half_width) + 1), min(height, int(center[1] + half_height) + 1)
    alpha = _warp(noun, pose, (center[0] - left, center[1] - top), right - left, bottom - top)
    shade = np.array(COLORS[color], np.float32) * np.float32(random.uniform(0.93, 1.04))
    paint = np.broadcast_to(shade, (*alpha.shape, 3))
    if texture != 'plain':
        dark = shade * 0.6 if shade.mean() < 220 else shade * 0.76
        dark = dark if shade.mean() > 60 else shade + 80
        pattern = _stripes(bottom - top, right - left, pose.extent * random.uniform(0.17, 0.24), random)
        if texture == 'dotted':
            period = pose.extent * random.uniform(0.2, 0.26)
            pattern = _dots(bottom - top, right - left, period, random)
        paint = np.where((pattern > 0)[..., None], dark, paint)
    window = image[top:bottom, left:right]
    window += alpha[..., None] * (paint - window)
    mask = np.zeros((height, width), np.bool_)
    mask[top:bottom, left:right] = alpha > 0.5
    return mask


def _dots(height: int, width: int, period: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Positive inside the dots of a square lattice with a random direction; ``period`` in pixels."""
    turn, phase = random.uniform(0, np.pi / 2), random.uniform(0, 2 * np.pi, 2)
    x, y = np.arange(width)[None] * (2 * np.pi / period), np.arange(height)[:, None] * (2 * np.pi / period)
    waves = np.cos(x * np.cos(turn) + y * np.sin(turn) + phase[0])
    waves = waves + np.cos(y * np.cos(turn) - x * np.sin(turn) + phase[1])
    return (waves - 0.75).astype(np.float32)


def _warp(
    noun: str, pose: _Pose, center: tuple[float, float], width: int, height: int
) -> NDArray[np.float32]:
    """Coverage [height, width] in 0..1 of a silhouette at ``center``, sampled from a mip level."""
    level = int(np.clip(np.floor(np.log2(TEMPLATE_EXTENT / pose.extent)), 0, len(_mip_levels(noun)) - 1))
    template = _mip_levels(noun)[level]
    linear = pose.matrix() * 2.0**level
    offset = np.asarray(center) - 0.5 - linear @ [(template.shape[1] - 1) / 2, (template.shape[0] - 1) / 2]
    warped = cv2.warpAffine(
        template, np.column_stack([linear, offset]), (width, height), flags=cv2.INTER_LINEAR
    )
    return warped.astype(np.float32) / np.float32(255)


@cache
def _mip_levels(noun: str) -> tuple[Image, ...]:
    """The silhouette at full, half and quarter size."""
    levels = [silhouette(noun)]
    for _ in range(2):
        halved = cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(halved, np.uint8))
    return tuple(levels)


def _add_noise(image: NDArray[np.float32], random: np.random.Generator) -> Image:
    noise = random.standard_normal(image.shape, np.float32) * np.float32(random.uniform(2, 9))
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)


def _random_crop(image: Image, box: Sequence[float], size: int, random: np.random.Generator) -> Image:
    """Crop ``box`` after a random scaling by 0.95 to 1.6 and a small shift; borders are replicated."""
    scale = random.uniform(0.95, 1.6)
    width, height = scale * (box[2] - box[0]), scale * (box[3] - box[1])
    shift_x, shift_y = random.uniform(-0.06, 0.06, 2) * (width, height)
    left, top = (box[0] + box[2] - width) / 2 + shift_x, (box[1] + box[3] - height) / 2 + shift_y
    step_x, step_y = width / size, height / size
    inverse = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(image, inverse, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def _tight_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Intersection of two boxes, as a fraction of the smaller area."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0.0) * max(height, 0.0) / smaller
