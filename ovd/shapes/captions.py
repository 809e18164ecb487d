"""Words for OV-Shapes pictures: captions with the character span and boxes of every phrase.

One caption names everything, others name colours, textures, places or relations; together they serve
image-text training, grouping from captions, and phrase grounding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .scenes import Scene, Shape

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of a caption: characters [start, end) and the xyxy pixel boxes of all it applies to."""

    start: int
    end: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Caption:
    """One sentence about a picture."""

    text: str
    phrases: tuple[Phrase, ...]


def with_article(phrase: str) -> str:
    """'arrow' -> 'an arrow', 'star' -> 'a star'."""
    return f'{"an" if phrase[0] in "aeiou" else "a"} {phrase}'


def describe(noun: str, color: str = '', texture: str = '') -> str:
    """Texture, colour and noun in this order; 'plain' is not said."""
    return ' '.join(word for word in (texture if texture != 'plain' else '', color, noun) if word)


def write_captions(scene: Scene, random: np.random.Generator) -> list[Caption]:
    """Five captions of ``scene``: its nouns; colours and nouns; everything; a place; a relation.

    A phrase is grounded to every shape it is true of: 'a star' in a picture of two stars has two boxes.
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
        _compose([(first, ('color', 'noun')), ' ', _place(first, scene.image.shape[0])], scene),
        _compose(relation, scene),
    ]


Mention = tuple[Shape, tuple[str, ...]]  # a shape, and which of its attributes are said


def _listing(shapes: Sequence[Shape], attributes: tuple[str, ...]) -> list[str | Mention]:
    """'A', 'A and B' or 'A, B and C'; a description that fits several shapes is said once per shape."""
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
        said = {name: getattr(shape, name) for name in attributes}
        if said.get('texture') == 'plain':
            del said['texture']
        matching = tuple(
            other.box for other in scene.shapes if all(getattr(other, key) == said[key] for key in said)
        )
        phrase = with_article(describe(**said))
        phrases.append(Phrase(len(text), len(text) + len(phrase), matching))
        text += phrase
    return Caption(text, tuple(phrases))


def _center(shape: Shape) -> tuple[float, float]:
    return (shape.box[0] + shape.box[2]) / 2, (shape.box[1] + shape.box[3]) / 2


def _place(shape: Shape, size: int) -> str:
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
