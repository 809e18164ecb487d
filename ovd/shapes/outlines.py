"""Silhouettes of the OV-Shapes nouns, drawn as unions of polygons in the square [-1, 1] x [-1, 1], y down.

The nouns were chosen such that their silhouettes differ at 20 pixels under all rotations up to 40 degrees.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

_CANVAS = 1024
_SUBPIXEL_BITS = 4
TEMPLATE_SIZE = 256
TEMPLATE_EXTENT = 240  # longer side of a silhouette inside its template, in pixels

Points = Sequence[Sequence[float] | NDArray[np.float64]] | NDArray[np.float64]


class Pen:
    """Fills or erases simple figures on a binary canvas."""

    def __init__(self) -> None:
        self.canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)

    def polygon(self, points: Points, erase: bool = False) -> None:
        """Fill the polygon of ``points`` [n, 2], each (x, y)."""
        scaled = (np.asarray(points, np.float64) * 0.42 + 0.5) * _CANVAS * (1 << _SUBPIXEL_BITS)
        corners = np.round(scaled).astype(np.int32)
        cv2.fillPoly(self.canvas, [corners], (0.0 if erase else 255.0,), cv2.LINE_8, _SUBPIXEL_BITS)

    def box(self, left: float, top: float, right: float, bottom: float, erase: bool = False) -> None:
        """Fill an axis-aligned rectangle."""
        self.polygon([[left, top], [right, top], [right, bottom], [left, bottom]], erase)

    def disc(self, x: float, y: float, radius: float, radius_y: float | None = None, angle: float = 0.0,
             erase: bool = False) -> None:  # fmt: skip
        """Fill an ellipse around (x, y), rotated by ``angle`` degrees."""
        turn = np.deg2rad(angle)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        self.polygon(arc(0, 0, radius, 0, 360, radius_y) @ rotation + [x, y], erase)

    def stroke(self, points: Points, width: float, erase: bool = False) -> None:
        """Draw a line through ``points`` with round joints."""
        path = np.asarray(points, np.float64)
        for start, end in pairwise(path):
            along = end - start
            across = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
            self.polygon(np.stack([start + across, end + across, end - across, start - across]), erase)
        for x, y in path:
            self.disc(x, y, width / 2, erase=erase)


def arc(x: float, y: float, radius: float, start: float, stop: float,
        radius_y: float | None = None) -> NDArray[np.float64]:  # fmt: skip
    """Points [n, 2] of an elliptic arc from ``start`` to ``stop`` degrees, clockwise on screen."""
    angles = np.deg2rad(np.linspace(start, stop, 96))
    vertical = radius if radius_y is None else radius_y
    return np.stack([x + radius * np.cos(angles), y + vertical * np.sin(angles)], 1)


@cache
def silhouette(noun: str) -> NDArray[np.uint8]:
    """Coverage [256, 256] of a noun's silhouette in 0..255: centred, its longer side 240 pixels."""
    pen = Pen()
    OUTLINES[noun](pen)
    rows, columns = np.flatnonzero(pen.canvas.any(1)), np.flatnonzero(pen.canvas.any(0))
    cut = pen.canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = TEMPLATE_EXTENT / max(cut.shape)
    height, width = round(cut.shape[0] * scale), round(cut.shape[1] * scale)
    template = np.zeros((TEMPLATE_SIZE, TEMPLATE_SIZE), np.uint8)
    top, left = (TEMPLATE_SIZE - height) // 2, (TEMPLATE_SIZE - width) // 2
    template[top : top + height, left : left + width] = cv2.resize(
        cut, (width, height), interpolation=cv2.INTER_AREA
    )
    return template


def _circle(pen: Pen) -> None:
    pen.disc(0, 0, 1)


def _star(pen: Pen) -> None:
    turns, radii = np.deg2rad(np.arange(10) * 36 - 90), np.tile([1.0, 0.4], 5)
    pen.polygon(np.stack([radii * np.cos(turns), radii * np.sin(turns)], 1))


def _cross(pen: Pen) -> None:
    pen.box(-0.33, -1, 0.33, 1)
    pen.box(-1, -0.33, 1, 0.33)


def _ring(pen: Pen) -> None:
    pen.disc(0, 0, 1)
    pen.disc(0, 0, 0.55, erase=True)


def _house(pen: Pen) -> None:
    pen.polygon([[0, -1], [1, -0.15], [-1, -0.15]])
    pen.box(-0.72, -0.2, 0.72, 1)
    pen.box(-0.25, 0.35, 0.25, 1.02, erase=True)


def _tree(pen: Pen) -> None:
    for top, bottom, half_width in ((-1, -0.25, 0.55), (-0.6, 0.2, 0.75), (-0.15, 0.65, 0.95)):
        pen.polygon([[0, top], [half_width, bottom], [-half_width, bottom]])
    pen.box(-0.17, 0.6, 0.17, 1)


def _flower(pen: Pen) -> None:
    pen.disc(0, 0, 0.5)
    for turn in np.deg2rad(np.arange(6) * 60):
        pen.disc(0.62 * np.cos(turn), 0.62 * np.sin(turn), 0.37)
    pen.disc(0, 0, 0.26, erase=True)


def _key(pen: Pen) -> None:
    pen.disc(-0.52, 0, 0.48)
    pen.disc(-0.52, 0, 0.22, erase=True)
    pen.box(-0.1, -0.13, 1, 0.13)
    pen.box(0.72, 0, 0.98, 0.55)
    pen.box(0.3, 0, 0.52, 0.42)


def _crown(pen: Pen) -> None:
    pen.polygon([[-1, 0.75], [-1, -0.65], [-0.5, 0.05], [0, -0.9], [0.5, 0.05], [1, -0.65], [1, 0.75]])


def _fork(pen: Pen) -> None:
    for x in (-0.45, 0, 0.45):
        pen.stroke([[x, -0.9], [x, -0.2]], 0.19)
    pen.polygon(arc(0, -0.25, 0.545, 0, 180))
    pen.stroke([[0, 0.1], [0, 0.9]], 0.24)


def _comb(pen: Pen) -> None:
    pen.box(-1, -0.7, 1, -0.2)
    for x in np.linspace(-0.88, 0.88, 5):
        pen.box(x - 0.12, -0.3, x + 0.12, 0.7)


def _window(pen: Pen) -> None:
    pen.box(-0.9, -0.9, 0.9, 0.9)
    for left in (-0.62, 0.14):
        for top in (-0.62, 0.14):
            pen.box(left, top, left + 0.48, top + 0.48, erase=True)


def _sun(pen: Pen) -> None:
    pen.disc(0, 0, 0.5)
    for turn in np.deg2rad(np.arange(8) * 45):
        out = np.array([np.cos(turn), np.sin(turn)])
        side = np.array([-out[1], out[0]])
        pen.polygon(
            [
                out * 0.62 + side * 0.13,
                out * 1.02 + side * 0.06,
                out * 1.02 - side * 0.06,
                out * 0.62 - side * 0.13,
            ]
        )


def _umbrella(pen: Pen) -> None:
    pen.polygon(arc(0, -0.05, 1, 180, 360, 0.9))
    for x in (-0.67, 0, 0.67):
        pen.disc(x, -0.02, 0.335, 0.2, erase=True)
    pen.stroke([[0, -0.6], [0, 0.75]], 0.13)
    pen.stroke(arc(0.22, 0.75, 0.22, 0, 180), 0.13)


def _hammer(pen: Pen) -> None:
    pen.box(-0.14, -0.4, 0.14, 1)
    pen.polygon([[-0.75, -0.85], [0.55, -0.85], [0.95, -0.3], [0.75, -0.3], [0.45, -0.4], [-0.75, -0.4]])


def _bone(pen: Pen) -> None:
    pen.box(-0.7, -0.18, 0.7, 0.18)
    for x in (-0.72, 0.72):
        for y in (-0.28, 0.28):
            pen.disc(x, y, 0.29)


def _heart(pen: Pen) -> None:
    t = np.linspace(0, 2 * np.pi, 120)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    pen.polygon(np.stack([np.sin(t) ** 3, -y / 16], 1))


def _crescent(pen: Pen) -> None:
    pen.disc(0, 0, 1)
    pen.disc(0.5, 0, 0.82, erase=True)


def _fish(pen: Pen) -> None:
    pen.disc(-0.2, 0, 0.8, 0.52)
    pen.polygon([[0.35, 0], [1, -0.6], [1, 0.6]])
    pen.disc(-0.6, -0.12, 0.11, erase=True)


def _anchor(pen: Pen) -> None:
    pen.disc(0, -0.75, 0.27)
    pen.disc(0, -0.75, 0.11, erase=True)
    pen.box(-0.11, -0.5, 0.11, 0.9)
    pen.box(-0.45, -0.35, 0.45, -0.13)
    pen.stroke(arc(0, 0.1, 0.8, 15, 165), 0.22)
    for side in (-1, 1):
        pen.polygon([[side, 0.5], [side * 0.98, -0.15], [side * 0.5, 0.2]])


def _butterfly(pen: Pen) -> None:
    pen.disc(0, 0, 0.12, 0.75)
    for side in (-1, 1):
        pen.disc(side * 0.55, -0.4, 0.5, 0.42, angle=side * -35)
        pen.disc(side * 0.45, 0.45, 0.38, 0.36, angle=side * 30)
        pen.stroke([[0, -0.6], [side * 0.25, -0.98]], 0.08)


def _spiral(pen: Pen) -> None:
    t = np.linspace(0.5, 4.6 * np.pi, 140)
    radius = 0.06 + 0.82 * t / t[-1]
    pen.stroke(np.stack([radius * np.cos(t), radius * np.sin(t)], 1), 0.2)


def _magnet(pen: Pen) -> None:
    pen.polygon(np.concatenate([arc(0, -0.1, 0.9, 180, 360), arc(0, -0.1, 0.38, 360, 180)]))
    pen.box(-0.9, -0.12, -0.38, 0.95)
    pen.box(0.38, -0.12, 0.9, 0.95)


def _cactus(pen: Pen) -> None:
    pen.stroke([[0, -0.8], [0, 0.95]], 0.4)
    pen.stroke([[-0.72, -0.3], [-0.72, 0.2], [0, 0.2]], 0.3)
    pen.stroke([[0.72, -0.55], [0.72, -0.05], [0, -0.05]], 0.3)


OUTLINES: dict[str, Callable[[Pen], None]] = {
    'circle': _circle,
    'star': _star,
    'cross': _cross,
    'ring': _ring,
    'house': _house,
    'tree': _tree,
    'flower': _flower,
    'key': _key,
    'crown': _crown,
    'fork': _fork,
    'comb': _comb,
    'window': _window,
    'sun': _sun,
    'umbrella': _umbrella,
    'hammer': _hammer,
    'bone': _bone,
    'heart': _heart,
    'crescent': _crescent,
    'fish': _fish,
    'anchor': _anchor,
    'butterfly': _butterfly,
    'spiral': _spiral,
    'magnet': _magnet,
    'cactus': _cactus,
}
