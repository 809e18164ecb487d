"""Draw a caption as a panel, with phrases underlined in the colours of their boxes."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .draw import RGB, load_typeface


class Mark(NamedTuple):
    """Characters [start, end) of a caption and the colour of the line below them."""

    start: int
    end: int
    color: RGB


def draw_caption(
    caption: str,
    marks: Sequence[Mark],
    width: int,
    font_size: int,
    font: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Write a caption in black on white, in as many lines as it needs.

    Args:
        caption: wrapped at blanks, and within words wider than the panel.
        marks: lines of overlapping marks are stacked.
        width: of the panel, in pixels.
        font_size: in pixels.
        font: a TrueType file, for alphabets that the default (DejaVu Sans) lacks.
    Returns:
        uint8 [L, width, 3], RGB.
    """
    typeface = load_typeface(font, font_size)
    text = ''.join(' ' if char.isspace() else char for char in caption)
    margin, thickness = font_size // 2, max(2, font_size // 7)
    rows = stack(marks)
    ascent, descent = typeface.getmetrics()
    below = (max(rows, default=-1) + 1) * 2 * thickness
    height = ascent + descent + below + thickness
    lines = break_lines(text, width - 2 * margin, typeface)
    panel = Image.new('RGB', (width, len(lines) * height + 2 * margin), 'white')
    painter = ImageDraw.Draw(panel)
    for number, (start, end) in enumerate(lines):
        top = margin + number * height
        painter.text((margin, top), text[start:end], fill='black', font=typeface)
        for mark, row in zip(marks, rows):
            first, last = max(mark.start, start), min(mark.end, end)
            if first < last:
                left, right = (margin + typeface.getlength(text[start:index]) for index in (first, last))
                y = top + ascent + descent + row * 2 * thickness
                painter.rectangle((left, y, right - 1, y + thickness - 1), fill=mark.color)
    return np.array(panel)


def stack(marks: Sequence[Mark]) -> list[int]:
    """Row of each mark's line: the first without an overlapping longer mark."""
    rows = [-1] * len(marks)
    for index in sorted(range(len(marks)), key=lambda index: marks[index].start - marks[index].end):
        mark = marks[index]
        taken = {
            row
            for row, other in zip(rows, marks)
            if row >= 0 and other.start < mark.end and mark.start < other.end
        }
        rows[index] = next(row for row in range(len(marks)) if row not in taken)
    return rows


def break_lines(text: str, width: float, typeface: ImageFont.FreeTypeFont) -> list[tuple[int, int]]:
    """Characters [start, end) of each line of a text; the blanks between two lines are in neither."""
    lines, start = [], len(text) - len(text.lstrip(' '))
    while start < len(text):
        end = start + 1
        while end < len(text) and typeface.getlength(text[start : end + 1]) <= width:
            end += 1
        if end < len(text) and text[end] != ' ' and ' ' in text[start:end]:
            end = text.rindex(' ', start, end)
        lines.append((start, start + len(text[start:end].rstrip(' '))))
        start = end + len(text[end:]) - len(text[end:].lstrip(' '))
    return lines
