"""Prompt templates: the named sets of the literature and the rules that put a class name into them.

A template holds ``{}`` once, where the name goes, and may hold ``{article}``, which becomes 'a' or 'an'.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias


@dataclass(frozen=True)
class PromptSet:
    """A named tuple of templates and the way names are spelled in them.

    Attributes:
        name: key in ``TEMPLATES``, or 'custom'.
        templates: P strings, each with exactly one ``{}``.
        spelling: 'words' shows underscores as spaces; 'vild' also shows '/' as ' or ', in lower case and
            without final dots; 'raw' leaves the name alone.
    """

    name: str
    templates: tuple[str, ...]
    spelling: str = 'words'

    def __post_init__(self) -> None:
        if not self.templates:
            raise ValueError(f'prompt set {self.name!r} holds no template')
        if self.spelling not in _SPELLINGS:
            raise ValueError(f'spelling {self.spelling!r} of prompts is none of {sorted(_SPELLINGS)}')
        for index, template in enumerate(self.templates):
            _check_template(template, index)

    def __len__(self) -> int:
        return len(self.templates)


Templates: TypeAlias = 'str | PromptSet | Sequence[str]'


def expand(name: str, templates: Templates) -> list[str]:
    """Fill one class name into every template: P prompts, in the order of the templates."""
    prompts = get_templates(templates)
    shown = _SPELLINGS[prompts.spelling](name)
    # ViLD chooses the article by the first letter as the data set writes it, so 'Orange' gets 'a'.
    first = (name if prompts.spelling == 'vild' else shown.lower())[:1]
    article = 'an' if first and first in 'aeiou' else 'a'
    return [t.replace('{article}', article).replace('{}', shown) for t in prompts.templates]


def get_templates(spec: Templates) -> PromptSet:
    """The prompt set meant by ``spec``: a name of ``TEMPLATES``, one template, or a list of templates.

    Raises:
        ValueError: an unknown name, an empty list, or a template without exactly one ``{}``; the message
            quotes it.
    """
    if isinstance(spec, PromptSet):
        return spec
    if isinstance(spec, str):
        if spec in TEMPLATES:
            return TEMPLATES[spec]
        if '{' not in spec:
            raise ValueError(f'unknown prompt templates {spec!r}; known sets: {", ".join(sorted(TEMPLATES))}')
        return PromptSet('custom', (spec,))
    return PromptSet('custom', tuple(spec))


def _check_template(template: object, index: int) -> None:
    if not isinstance(template, str):
        raise ValueError(f'template {index} is {template!r}, expected a string with one {{}}')
    if template.count('{}') != 1:
        raise ValueError(f'template {index} {template!r} must hold exactly one {{}} for the class name')
    rest = template.replace('{}', '').replace('{article}', '')
    if '{' in rest or '}' in rest:
        raise ValueError(f'template {index} {template!r} may hold no braces but {{}} and {{article}}')


def _words(name: str) -> str:
    return ' '.join(name.replace('_', ' ').split())


def _vild(name: str) -> str:
    return name.replace('_', ' ').replace('/', ' or ').lower().rstrip('.')


_SPELLINGS: dict[str, Callable[[str], str]] = {'words': _words, 'vild': _vild, 'raw': str}


def _fill(pattern: str, *choices: Iterable[str]) -> list[str]:
    """All strings that result from replacing each ``*`` of the pattern by one of its choices, in order."""
    pieces = pattern.split('*')
    return [
        pieces[0] + ''.join(word + piece for word, piece in zip(words, pieces[1:]))
        for words in product(*choices)
    ]


def _vild63() -> list[str]:
    """The 63 templates of ViLD: five kinds of scene and photo, quality words, adjectives, renditions.

    Texts that begin with an article or determiner are led in by 'This is'.
    Source: Gu et al., ICLR 2022, and the authors' released demo.
    """
    qualities = (
        *('good', 'bad', 'bright', 'dark', 'low resolution', 'cropped', 'close-up', 'jpeg corrupted'),
        *('blurry', 'pixelated', 'black and white'),
    )
    adjectives = ('nice', 'cool', 'weird', 'small', 'large', 'clean', 'dirty', 'hard to see')
    texts = [
        *_fill('There is * {} in the scene.', ('{article}', 'the')),
        *_fill('a photo of * {} in the scene.', ('{article}', 'the', 'one')),
        *_fill('itap of * {}.', ('{article}', 'my', 'the')),
        *_fill('a photo of * {}.', ('{article}', 'my', 'the', 'one', 'many')),
        *_fill('a * photo of * {}.', qualities, ('{article}', 'the')),
        *_fill('a photo of * * {}.', ('a', 'the'), adjectives),
        *_fill('* * {}.', ('a', 'the'), ('plastic', 'toy', 'plushie', 'cartoon')),
        *('an embroidered {}.', 'the embroidered {}.', 'a painting of the {}.', 'a painting of a {}.'),
    ]
    return [f'This is {text}' if text.startswith(('a ', 'an ', 'the ')) else text for text in texts]


def _detpro74() -> list[str]:
    """The 74 templates that DetPro and OADP use: no final dot, names as the data set writes them."""
    sizes = ('', 'small ', 'medium ', 'large ')
    verbs, determiners = ('There is', 'This is'), ('a', 'the', 'one')
    return [
        *_fill('* a {}', verbs),
        *_fill('a photo of a *{}*', sizes, ('', ' in the scene')),
        *_fill('This is a photo of a *{}', sizes),
        *_fill('* * {} in the scene', verbs, determiners),
        *_fill('There is a *{} in the scene', sizes[1:]),
        *_fill('This is one *{} in the scene', sizes[1:]),
        *_fill('* * *{} in the *', verbs, determiners, sizes, ('photo', 'picture')),
    ]


def _clip80() -> list[str]:
    """The 80 ImageNet templates of CLIP (Radford et al., ICML 2021)."""
    both = ('a', 'the')
    qualities = (
        *('bad', 'low resolution', 'cropped', 'bright', 'dark', 'close-up', 'black and white'),
        *('pixelated', 'jpeg corrupted', 'blurry', 'good'),
    )
    adjectives = ('hard to see', 'clean', 'dirty', 'cool', 'nice', 'weird', 'small', 'large')
    works = (
        *('sculpture', 'rendering', 'tattoo', 'drawing', 'painting', 'sketch', 'doodle', 'rendition'),
        *('photo', 'close-up photo'),
    )
    return [
        *_fill('a * photo of * {}.', [q for q in qualities if q != 'close-up'], both),
        *_fill('a photo of * * {}.', both, adjectives),
        *_fill('a * of * {}.', works, both),
        *_fill('* of * {}.', ('graffiti', 'art', 'itap'), both),
        *_fill('* * {}.', both, ('plastic', 'toy', 'plushie', 'cartoon', 'embroidered', 'origami')),
        *_fill('* {} in a video game.', both),
        *('a photo of my {}.', 'itap of my {}.', 'a photo of one {}.', 'a photo of many {}.'),
    ]


_CLIP7 = (
    'itap of a {}.',
    'a bad photo of the {}.',
    'a origami {}.',
    'a photo of the large {}.',
    'a {} in a video game.',
    'art of the {}.',
    'a photo of the small {}.',
)

TEMPLATES: dict[str, PromptSet] = {
    prompts.name: prompts
    for prompts in (
        PromptSet('single', ('a photo of {article} {}.',), 'vild'),
        PromptSet('vild63', tuple(_vild63()), 'vild'),
        PromptSet('detpro74', tuple(_detpro74()), 'raw'),
        PromptSet('clip7', _CLIP7),
        PromptSet('clip80', tuple(_clip80())),
        PromptSet('a', ('a {}',)),
        PromptSet('name', ('{}',)),
        PromptSet('raw_name', ('{}',), 'raw'),
    )
}
