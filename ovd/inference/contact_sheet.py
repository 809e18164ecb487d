"""Many answers on one sheet, and answers marked as right or wrong where the objects are known."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .draw import RGB, draw_instances
from .fit_answers import judge
from .predictions import Prediction

RIGHT, WRONG, MISSED = (0, 140, 60), (215, 30, 40), (120, 120, 120)
_LINE = 18  # pixels of a line of text


def contact_sheet(
    pictures: Sequence[np.ndarray], texts: Sequence[Sequence[str]], columns: int = 4, side: int = 320
) -> Image.Image:
    """Pictures in rows, each with lines of text below.

    Args:
        pictures: RGB, uint8 [H, W, 3].
        texts: for each picture, its lines.
        columns: pictures in a row.
        side: of the square that each is fitted into, pixels.
    """
    cell = side + _LINE * max(map(len, texts), default=0) + 8
    sheet = Image.new('RGB', (columns * side, math.ceil(len(pictures) / columns) * cell), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, (picture, lines) in enumerate(zip(pictures, texts)):
        left, top = index % columns * side, index // columns * cell
        drawn = Image.fromarray(picture)
        drawn.thumbnail((side - 8, side - 8))
        sheet.paste(drawn, (left + (side - drawn.width) // 2, top + (side - drawn.height) // 2))
        for row, line in enumerate(lines):
            draw.text((left + 6, top + side + row * _LINE), line, fill='black', font=font)
    return sheet


def mark_answers(
    picture: np.ndarray, found: Prediction, objects: Sequence[tuple[str, np.ndarray]]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Draw right answers green, wrong ones red and missed objects grey.

    Args:
        picture: RGB, uint8 [H, W, 3].
        found: the answers.
        objects: (name, box xyxy [4]) of the picture.
    Returns:
        the drawn picture and the numbers of right, wrong and missed ones.
    """
    order = np.argsort(-found.scores, kind='stable')
    ranked = found.keep(order)
    judged = judge(ranked, objects)
    right = [answer.is_right for answer in judged]
    names = [f'{name}{" " if is_right else " (wrong)"}' for name, is_right in zip(ranked.names, right)]
    hit = {
        max(
            (number for number, (name, _) in enumerate(objects) if name == ranked.names[index]),
            key=lambda number: -float(np.abs(objects[number][1] - ranked.boxes[index]).sum()),
        )
        for index, is_right in enumerate(right)
        if is_right
    }
    missed = [(name, box) for number, (name, box) in enumerate(objects) if number not in hit]
    drawn = draw_instances(
        picture,
        np.array([box for _, box in missed], np.float32).reshape(-1, 4),
        [f'{name} (missed)' for name, _ in missed],
        colors={f'{name} (missed)': MISSED for name, _ in missed},
    )
    enlarged = drawn.shape[0] / picture.shape[0]
    colors: dict[str, RGB] = dict(zip(names, (RIGHT if is_right else WRONG for is_right in right)))
    drawn = draw_instances(drawn, ranked.boxes * enlarged, names, ranked.scores, colors=colors)
    return drawn, (sum(right), len(right) - sum(right), len(missed))
