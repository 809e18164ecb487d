"""Captions of OV-Shapes pictures, with the character span and boxes of every phrase.

One caption names all objects, others mention colours, textures, positions or relations; they are used for
image-text training, grouping from captions, and phrase grounding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .scenes import Scene, Shape

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxedPhrase:
    """A noun phrase of a caption: characters [start, end) and the xyxy pixel boxes of all matching shapes."""

    start: int
    end: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Caption:
    """One sentence about a picture."""

    text: str
    phrases: tuple[BoxedPhrase, ...]


def with_article(phrase: str) -> str:
    """'arrow' -> 'an arrow', 'star' -> 'a star'."""
    return f'{"an" if phrase[0] in "aeiou" else "a"} {phrase}'


def describe(noun: str, color: str = '', texture: str = '') -> str:
    """Join texture, colour and noun; 'plain' is omitted."""
    return ' '.join(word for word in (texture if texture != 'plain' else '', color, noun) if word)


def write_captions(scene: Scene, random: np.random.Generator) -> list[Caption]:
    """Five captions of ``scene``: nouns; colours and nouns; all attributes; a position; a relation.

    A phrase has the boxes of all shapes it describes: 'a star' in a picture of two stars has two boxes.
    """
    order = [scene.shapes[i] for i in random.permutation(len(scene.shapes))]
    first, other = order[0], order[-1]
    fully = ('texture', 'color', 'noun')
    relation: list[str | Mention] = ['there is ', (first, fully), ' in the scene']
    if first is not other:
        relation = [(first, fully), f' {_relation(first, other)} ', (other, ('noun',))]
    return [
        _compose(_listing(order, ('noun',)), scene),
        _compose(['a picture of ', *_listing(order, ('color', 'noun'))], scene),
        _compose(_listing(order, fully), scene),
        _compose([(first, ('color', 'noun')), ' ', _position(first, scene.image.shape[0])], scene),
        _compose(relation, scene),
    ]


Mention = tuple[Shape, tuple[str, ...]]  # a shape, and the attributes to mention


def _listing(shapes: Sequence[Shape], attributes: tuple[str, ...]) -> list[str | Mention]:
    """'A', 'A and B' or 'A, B and C'; equal descriptions are repeated for each shape."""
    parts: list[str | Mention] = []
    for position, shape in enumerate(shapes):
        if position:
            parts.append(' and ' if position == len(shapes) - 1 else ', ')
        parts.append((shape, attributes))
    return parts


def _compose(parts: Iterable[str | Mention], scene: Scene) -> Caption:
    text, phrases = '', []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        shape, attributes = part
        mentioned = {name: getattr(shape, name) for name in attributes}
        if mentioned.get('texture') == 'plain':
            del mentioned['texture']
        matching = tuple(
            other.box
            for other in scene.shapes
            if all(getattr(other, key) == value for key, value in mentioned.items())
        )
        phrase = with_article(describe(**mentioned))
        phrases.append(BoxedPhrase(len(text), len(text) + len(phrase), matching))
        text += phrase
    return Caption(text, tuple(phrases))


def _center(shape: Shape) -> tuple[float, float]:
    return (shape.box[0] + shape.box[2]) / 2, (shape.box[1] + shape.box[3]) / 2


def _position(shape: Shape, size: int) -> str:
    x, y = (coordinate / size - 0.5 for coordinate in _center(shape))
    if max(abs(x), abs(y)) < 1 / 6:
        return 'in the middle'
    if abs(x) >= abs(y):
        return 'on the left' if x < 0 else 'on the right'
    return 'at the top' if y < 0 else 'at the bottom'


def _relation(shape: Shape, other: Shape) -> str:
    (x, y), (other_x, other_y) = _center(shape), _center(other)
    if abs(x - other_x) >= abs(y - other_y):
        return 'left of' if x < other_x else 'right of'
    return 'above' if y < other_y else 'below'
