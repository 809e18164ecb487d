"""Draw predictions: masks, boxes, labels and legends, legible at any image size.

Reading order: ``name_colors``, ``draw_instances``, ``draw_segmentation``, helpers.

torchvision's drawing functions paint overlapping masks black and let labels leave the image or overlap.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

# Twenty colours distinct from each other and from white.
PALETTE: tuple[RGB, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (67, 99, 216), (245, 130, 49),
    (145, 30, 180), (66, 212, 244), (240, 50, 230), (170, 225, 40), (0, 128, 128),
    (195, 145, 255), (154, 99, 36), (128, 0, 0), (90, 230, 160), (128, 128, 0),
    (30, 40, 140), (255, 140, 170), (255, 170, 110), (128, 128, 128), (0, 95, 40),
)  # fmt: skip


def name_colors(names: Sequence[str]) -> dict[str, RGB]:
    """Colour of each name: independent of their order, distinct for up to 20 names.

    The hash of a name is its index in ``PALETTE``, or the next free one, in alphabetical order of names.
    Further rounds of the palette use other shades.
    """
    colors: dict[str, RGB] = {}
    free: set[int] = set()
    for count, name in enumerate(sorted(set(names))):
        if not free:
            free = set(range(len(PALETTE)))
        index = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(PALETTE)
        while index not in free:
            index = (index + 1) % len(PALETTE)
        free.remove(index)
        colors[name] = _shade(PALETTE[index], count // len(PALETTE))
    return colors


def _shade(color: RGB, number: int) -> RGB:
    """Shade of a colour: 0 is the colour, odd numbers are lighter, even ones darker."""
    if number == 0:
        return color
    aim = 255 if number % 2 else 0
    share = 0.45 / (1 + (number - 1) // 2 % 4)
    red, green, blue = (round(value + (aim - value) * share) for value in color)
    return red, green, blue


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    colors: dict[str, RGB] | None = None,
    min_side: int = 480,
    mask_opacity: float = 0.45,
    font: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Draw boxes, masks and labels on a copy of an image; the best score is drawn on top.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: [N, 4] xyxy, pixels of ``image``; clipped to the image.
        names: N labels; equal names get equal colours.
        scores: [N], written after the names, and the drawing order.
        masks: bool [N, H, W].
        colors: colour of each name, by default ``name_colors(names)``; pass the colours of a whole vocabulary
            for equal colours in all images.
        min_side: smaller images are enlarged by an integer factor to at least this shorter side in pixels.
        mask_opacity: 0 hides the masks, 1 the image below them.
        font: a TrueType file, for alphabets that the default (DejaVu Sans) lacks.
    Returns:
        uint8 [s * H, s * W, 3], RGB, with integer s >= 1.
    Raises:
        ValueError: an array of another shape or type.
    """
    _check(image, boxes, names, scores, masks)
    height, width = image.shape[:2]
    colors = name_colors(names) if colors is None else colors
    order = list(range(len(names))) if scores is None else np.argsort(scores, kind='stable').tolist()
    factor = _enlargement(height, width, min_side)

    blended = _blend_masks(image, masks, [colors[name] for name in names], order, mask_opacity)
    picture = Image.fromarray(blended).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    painter = ImageDraw.Draw(picture)
    typeface = load_typeface(font, font_size(picture.size))
    thickness = max(2, min(picture.size) // 240)

    limits = np.array(picture.size * 2) - 1
    rectangles = np.clip(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * factor, 0, limits).tolist()
    for index in order:
        painter.rectangle(rectangles[index], outline=colors[names[index]], width=thickness)
    taken: list[Rectangle] = []
    for index in reversed(order):
        score = '' if scores is None else f' {scores[index]:.2f}'
        text = _shorten(' '.join(names[index].split()), score, typeface, picture.width)
        label = _place_label(rectangles[index], _text_size(text, typeface), picture.size, taken)
        painter.rectangle(label, fill=colors[names[index]])
        middle = ((label[0] + label[2]) / 2, (label[1] + label[3]) / 2)
        painter.text(middle, text, fill=_ink(colors[names[index]]), font=typeface, anchor='mm')
        taken.append(label)
    return np.asarray(picture)


def draw_segmentation(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    colors: dict[str, RGB] | None = None,
    background: int | None = None,
    show_background: bool = False,
    opacity: float = 0.55,
    min_side: int = 480,
    font: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Tint every pixel with the colour of its class on a copy of an image, with a legend below.

    The legend lists the classes on the image, largest first. Dark lines separate neighbouring segments.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: integers [H, W]: indices of ``names``, ``background``, or -1, which is not tinted.
        names: K class names.
        colors: colour of each name, by default ``name_colors(names)``; pass the colours of a whole vocabulary
            for equal colours in all images.
        background: label of pixels that are not tinted.
        show_background: tint those in grey and list them.
        opacity: 0 hides the tints, 1 the image below them.
        min_side: see ``draw_instances``.
        font: a TrueType file, for alphabets that the default (DejaVu Sans) lacks.
    Returns:
        uint8 [s * H + L, s * W, 3], RGB, with integer s >= 1 and a legend of L >= 0 rows.
    Raises:
        ValueError: an array of another shape or type, or a label without a name.
    """
    shown = _check_labels(image, labels, names, background)
    colors = name_colors(names) if colors is None else colors
    height, width = labels.shape
    entries = []
    tints = np.zeros((len(names) + 1, 3))
    for label, area in shown:
        if label == background and not show_background:
            continue
        name = names[label] if label < len(names) else 'background'
        color = _GREY if label == background else colors[name]
        tints[label] = color
        entries.append((' '.join(name.split()), f' {_percent(area / labels.size)}', color))
    untouched = labels < 0
    if background is not None and not show_background:
        untouched = untouched | (labels == background)
    labels = np.where(untouched, -1, labels)
    tinted = np.rint(image * (1 - opacity) + tints[labels] * opacity).astype(np.uint8)
    tinted[untouched] = image[untouched]
    factor = _enlargement(height, width, min_side)
    size = (width * factor, height * factor)
    enlarged = np.array(Image.fromarray(tinted).resize(size, Image.Resampling.BICUBIC))
    edges = _edges(labels.repeat(factor, axis=0).repeat(factor, axis=1))
    enlarged[edges] = enlarged[edges] // 2
    typeface = load_typeface(font, font_size(size))
    return np.concatenate([enlarged, _legend(entries, width * factor, typeface)])


_GREY: RGB = (100, 100, 100)


def _percent(share: float) -> str:
    """Format a fraction of the image: '41 %', '0.3 %', '<0.1 %'."""
    if share >= 0.1:
        return f'{100 * share:.0f} %'
    return f'{100 * share:.1f} %' if share >= 0.001 else '<0.1 %'


def _edges(labels: np.ndarray) -> np.ndarray:
    """Pixels [H, W] whose label differs from that of the next pixel to the right or below."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    return edges


def _legend(
    entries: Sequence[tuple[str, str, RGB]], width: int, typeface: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Draw a legend of (name, share, colour), uint8 [L, width, 3]; wide names are shortened."""
    ascent, descent = typeface.getmetrics()
    line = round(1.3 * (ascent + descent))
    swatch, gap = ascent, ascent // 2
    taken = swatch + 3 * gap
    texts = [_shorten(name, share, typeface, width - taken) for name, share, _ in entries]
    column = max((typeface.getlength(text) for text in texts), default=0) + taken
    columns = max(1, min(len(entries), int(width // column)))
    rows = -(-len(entries) // columns)
    panel = Image.new('RGB', (width, rows * line + 2 * gap if entries else 0), 'white')
    painter = ImageDraw.Draw(panel)
    for index, (text, (_, _, color)) in enumerate(zip(texts, entries)):
        x = gap + index // rows * (width // columns)
        y = gap + index % rows * line
        top = y + (line - swatch) // 2
        painter.rectangle((x, top, x + swatch, top + swatch), fill=color, outline='black')
        painter.text((x + swatch + gap, y + line / 2), text, fill='black', font=typeface, anchor='lm')
    return np.array(panel).reshape(panel.height, width, 3)


def _check_labels(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], background: int | None
) -> list[tuple[int, int]]:
    """Check arguments; return the labels on the image with pixel counts, largest first."""
    _check_image(image)
    if labels.shape != image.shape[:2] or labels.dtype.kind not in 'iu':
        expected = list(image.shape[:2])
        raise ValueError(f'expected labels, integers {expected}, got {labels.dtype} {list(labels.shape)}')
    found, areas = np.unique(labels[labels >= 0], return_counts=True)
    for label in found.tolist():
        if label >= len(names) and label != background:
            raise ValueError(f'labels contain {label}, but there are {len(names)} names')
    order = np.argsort(-areas, kind='stable')
    return [(int(found[index]), int(areas[index])) for index in order]


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'expected an RGB image, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')


def _check(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None,
    masks: np.ndarray | None,
) -> None:
    """Raise ValueError for an argument of another shape or type."""
    _check_image(image)
    count = len(names)
    if np.shape(boxes) != (count, 4):
        raise ValueError(f'expected boxes [{count}, 4] for {count} names, got {list(np.shape(boxes))}')
    if not np.isfinite(boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(f'box {bad} is not finite: {np.asarray(boxes)[bad].tolist()}')
    if scores is not None and np.shape(scores) != (count,):
        raise ValueError(f'expected scores [{count}] for {count} names, got {list(np.shape(scores))}')
    if masks is not None and (masks.dtype != bool or masks.shape != (count, *image.shape[:2])):
        expected = [count, *image.shape[:2]]
        raise ValueError(f'expected masks bool {expected}, got {masks.dtype} {list(masks.shape)}')


def _enlargement(height: int, width: int, min_side: int) -> int:
    """Integer factor for a shorter side of ``min_side``, with a longer side of at most four times that."""
    wanted = -(-min_side // min(height, width))
    return max(1, min(wanted, 4 * min_side // max(height, width)))


def _blend_masks(
    image: np.ndarray, masks: np.ndarray | None, colors: list[RGB], order: Sequence[int], opacity: float
) -> np.ndarray:
    """Blend mask colours into the image; of overlapping masks, the last in ``order`` is on top."""
    blended = image.copy()
    if masks is None:
        return blended
    for index in order:
        mask = masks[index]
        mixed = image[mask] * (1 - opacity) + np.array(colors[index]) * opacity
        blended[mask] = np.rint(mixed).astype(np.uint8)
    return blended


def load_typeface(font: str | os.PathLike[str] | None, size: int) -> ImageFont.FreeTypeFont:
    """Load a font at a size in pixels; by default DejaVu Sans of matplotlib."""
    return _typeface(None if font is None else os.fspath(font), size)


def font_size(picture: tuple[int, int]) -> int:
    """Font size in pixels for an image of this (width, height)."""
    return max(14, min(picture) // 48)


@lru_cache
def _typeface(font: str | None, size: int) -> ImageFont.FreeTypeFont:
    if font is None:
        import matplotlib

        font = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
    try:
        return ImageFont.truetype(font, size)
    except OSError as error:
        raise ValueError(f'cannot read {font!r} as a TrueType font: {error}') from None


def _text_size(text: str, typeface: ImageFont.FreeTypeFont) -> tuple[float, float]:
    """Width and height of a label: the text and a margin."""
    ascent, descent = typeface.getmetrics()
    return typeface.getlength(text) + 0.5 * ascent, 1.1 * (ascent + descent)


def _shorten(name: str, score: str, typeface: ImageFont.FreeTypeFont, width: int) -> str:
    """Label of a name and a score; the name is truncated until the label fits into ``width``."""
    text, kept = name + score, len(name)
    while kept and _text_size(text, typeface)[0] > width:
        kept -= 1
        text = f'{name[:kept].rstrip()}…{score}'
    return text


def _place_label(
    box: Sequence[float], size: tuple[float, float], picture: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Place a label above, inside, below or right-aligned with its box, with the least overlap.

    Args:
        box: x1, y1, x2, y2 of the object.
        size: (width, height) of the label.
        picture: (width, height) of the image, to which the label is clipped.
        taken: labels placed so far.
    """
    x1, y1, x2, y2 = box
    width, height = size
    corners = [(x, y) for x in (x1, x2 - width) for y in (y1 - height, y1, y2, y2 - height)]

    def inside(corner: tuple[float, float]) -> Rectangle:
        x = max(0.0, min(corner[0], picture[0] - 1 - width))
        y = max(0.0, min(corner[1], picture[1] - 1 - height))
        return x, y, x + width, y + height

    def hidden(label: Rectangle) -> float:
        return sum(_overlap(label, other) for other in taken)

    return min((inside(corner) for corner in corners), key=hidden)


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Common area of two rectangles."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _ink(color: RGB) -> str:
    """Black or white, by contrast with ``color`` (ITU-R BT.601 luma)."""
    return 'black' if np.dot(color, (0.299, 0.587, 0.114)) > 140 else 'white'
