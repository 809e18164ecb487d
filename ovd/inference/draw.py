"""Draw what a model found: masks, boxes, labels and legends that stay legible on a picture of any size.

Reading order: ``name_colors``, ``draw_instances``, ``draw_segmentation``, their helpers.

torchvision's drawing functions are not used: they paint overlapping masks black and let labels run out of the
picture or over each other.
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

# Twenty colours that differ from each other and from white; a name picks one by its hash.
PALETTE: tuple[RGB, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (67, 99, 216), (245, 130, 49),
    (145, 30, 180), (66, 212, 244), (240, 50, 230), (170, 225, 40), (0, 128, 128),
    (195, 145, 255), (154, 99, 36), (128, 0, 0), (90, 230, 160), (128, 128, 0),
    (30, 40, 140), (255, 140, 170), (255, 170, 110), (128, 128, 128), (0, 95, 40),
)  # fmt: skip


def name_colors(names: Sequence[str]) -> dict[str, RGB]:
    """One colour for each name: the same for every order of the names, very different for up to 20 of them.

    A name's hash chooses its place in ``PALETTE``; of two names that want the same one, the later in the
    alphabet moves on to the next free place. When the palette is used up, it is used again in other shades.
    """
    colors: dict[str, RGB] = {}
    free: set[int] = set()
    for count, name in enumerate(sorted(set(names))):
        if not free:
            free = set(range(len(PALETTE)))
        place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(PALETTE)
        while place not in free:
            place = (place + 1) % len(PALETTE)
        free.remove(place)
        colors[name] = _shade(PALETTE[place], count // len(PALETTE))
    return colors


def _shade(color: RGB, number: int) -> RGB:
    """A lighter or darker kind of a colour: 0 is the colour, odd numbers are lighter, even ones darker."""
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
        boxes: [N, 4] xyxy, pixels of ``image``; parts outside the image are cut off.
        names: N labels; equal names get equal colours.
        scores: [N], written behind the names and used as the drawing order.
        masks: bool [N, H, W].
        colors: colour of each name, by default ``name_colors(names)``; pass the colours of a whole vocabulary
            to keep them equal over many pictures.
        min_side: a smaller picture is enlarged by a whole factor until its shorter side has this many pixels.
        mask_opacity: 0 hides the masks, 1 hides the image below them.
        font: a TrueType file, for alphabets that the default (DejaVu Sans) lacks.
    Returns:
        uint8 [s * H, s * W, 3], RGB, with the whole factor s >= 1.
    Raises:
        ValueError: an array of another shape or type than above.
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
        place = _place_label(rectangles[index], _text_size(text, typeface), picture.size, taken)
        painter.rectangle(place, fill=colors[names[index]])
        middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
        painter.text(middle, text, fill=_ink(colors[names[index]]), font=typeface, anchor='mm')
        taken.append(place)
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
    """Tint every pixel with the colour of its word, over a copy of an image, with a legend below.

    The legend lists the words on the image only, the largest first, in as many columns as fit; it grows
    downwards, so none is left out. Neighbouring areas are separated by a dark line.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: integers [H, W]: places in ``names``; K (the number of names) when ``background`` is K; -1 is
            left alone.
        names: K words.
        colors: colour of each name, by default ``name_colors(names)``; pass the colours of a whole vocabulary
            to keep them equal over many pictures.
        background: the label whose pixels keep their look.
        show_background: tint those too, in grey, and list them.
        opacity: 0 hides the tints, 1 hides the image below them.
        min_side: a smaller picture is enlarged by a whole factor until its shorter side has this many pixels.
        font: a TrueType file, for alphabets that the default (DejaVu Sans) lacks.
    Returns:
        uint8 [s * H + L, s * W, 3], RGB, with the whole factor s >= 1 and a legend of L rows, 0 when there is
        nothing to list.
    Raises:
        ValueError: an array of another shape or type than above, or a label beyond the names.
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
    places = np.where(untouched, -1, labels)
    tinted = np.rint(image * (1 - opacity) + tints[places] * opacity).astype(np.uint8)
    tinted[untouched] = image[untouched]
    factor = _enlargement(height, width, min_side)
    size = (width * factor, height * factor)
    enlarged = np.array(Image.fromarray(tinted).resize(size, Image.Resampling.BICUBIC))
    edges = _edges(places.repeat(factor, axis=0).repeat(factor, axis=1))
    enlarged[edges] = enlarged[edges] // 2
    typeface = load_typeface(font, font_size(size))
    return np.concatenate([enlarged, _legend(entries, width * factor, typeface)])


_GREY: RGB = (100, 100, 100)


def _percent(share: float) -> str:
    """A share of the image for the legend: '41 %', '0.3 %', '<0.1 %'."""
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
    """Swatches with (name, share, colour), uint8 [L, width, 3]; a name wider than that is cut."""
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
    """The labels on the image with their pixel counts, the largest first; refuses what cannot be drawn."""
    _check_image(image)
    if labels.shape != image.shape[:2] or labels.dtype.kind not in 'iu':
        expected = list(image.shape[:2])
        raise ValueError(f'expected labels, integers {expected}, got {labels.dtype} {list(labels.shape)}')
    found, areas = np.unique(labels[labels >= 0], return_counts=True)
    for label in found.tolist():
        if label >= len(names) and label != background:
            raise ValueError(f'label {label} is on the image, but there are {len(names)} names')
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
    """Raise a ValueError that names the first argument of the wrong shape or type."""
    _check_image(image)
    count = len(names)
    if np.shape(boxes) != (count, 4):
        raise ValueError(f'expected boxes [{count}, 4] for {count} names, got {list(np.shape(boxes))}')
    if not np.isfinite(boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(f'box {bad} has coordinates that are not finite: {np.asarray(boxes)[bad].tolist()}')
    if scores is not None and np.shape(scores) != (count,):
        raise ValueError(f'expected scores [{count}] for {count} names, got {list(np.shape(scores))}')
    if masks is not None and (masks.dtype != bool or masks.shape != (count, *image.shape[:2])):
        expected = [count, *image.shape[:2]]
        raise ValueError(f'expected masks bool {expected}, got {masks.dtype} {list(masks.shape)}')


def _enlargement(height: int, width: int, min_side: int) -> int:
    """Whole factor that brings the shorter side to ``min_side``, the longer to at most four times that."""
    wanted = -(-min_side // min(height, width))
    return max(1, min(wanted, 4 * min_side // max(height, width)))


def _blend_masks(
    image: np.ndarray, masks: np.ndarray | None, colors: list[RGB], order: Sequence[int], opacity: float
) -> np.ndarray:
    """Mix each mask's colour into the image; where masks overlap, the last in ``order`` shows."""
    blended = image.copy()
    if masks is None:
        return blended
    for index in order:
        mask = masks[index]
        mixed = image[mask] * (1 - opacity) + np.array(colors[index]) * opacity
        blended[mask] = np.rint(mixed).astype(np.uint8)
    return blended


def load_typeface(font: str | os.PathLike[str] | None, size: int) -> ImageFont.FreeTypeFont:
    """The font file at a size in pixels; by default DejaVu Sans, which comes with matplotlib."""
    return _typeface(None if font is None else os.fspath(font), size)


def font_size(picture: tuple[int, int]) -> int:
    """Pixels of the letters on a picture of this (width, height)."""
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
    """Width and height of a label: the text and a margin; all labels of a font have the same height."""
    ascent, descent = typeface.getmetrics()
    return typeface.getlength(text) + 0.5 * ascent, 1.1 * (ascent + descent)


def _shorten(name: str, score: str, typeface: ImageFont.FreeTypeFont, width: int) -> str:
    """The label of a name and a score; the name is cut at its end until the label fits into ``width``."""
    text, kept = name + score, len(name)
    while kept and _text_size(text, typeface)[0] > width:
        kept -= 1
        text = f'{name[:kept].rstrip()}…{score}'
    return text


def _place_label(
    box: Sequence[float], size: tuple[float, float], picture: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Where a label goes: above its box, else inside, below or at the right end; wherever it hides least.

    Args:
        box: x1, y1, x2, y2 of the object.
        size: (width, height) of the label.
        picture: (width, height) of the picture, which the label never leaves.
        taken: the labels placed so far.
    """
    x1, y1, x2, y2 = box
    width, height = size
    corners = [(x, y) for x in (x1, x2 - width) for y in (y1 - height, y1, y2, y2 - height)]

    def inside(corner: tuple[float, float]) -> Rectangle:
        x = max(0.0, min(corner[0], picture[0] - 1 - width))
        y = max(0.0, min(corner[1], picture[1] - 1 - height))
        return x, y, x + width, y + height

    def hidden(place: Rectangle) -> float:
        return sum(_overlap(place, other) for other in taken)

    return min((inside(corner) for corner in corners), key=hidden)


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Common area of two rectangles."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _ink(color: RGB) -> str:
    """Black or white, whichever reads better on ``color`` (ITU-R BT.601 luma)."""
    return 'black' if np.dot(color, (0.299, 0.587, 0.114)) > 140 else 'white'
