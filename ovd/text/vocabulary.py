"""Vocabulary: the ordered class names of a run, in every spelling users already have them."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

_ASSETS = Path(__file__).resolve().parents[1] / 'assets' / 'vocabularies'
_ALIASES = {'coco48_17': 'coco_ov', 'coco65': 'coco_ov'}
_FIELDS = ('names', 'novel', 'synonyms', 'descriptions', 'labels')

VocabularySpec: TypeAlias = 'Vocabulary | str | Path | Sequence[str | Sequence[str]] | Mapping[str, Any]'


@dataclass(frozen=True, init=False)
class Vocabulary:
    """K ordered class names; the position of a name is its label.

    Attributes:
        names: what is encoded and matched with the categories of a data set.
        is_novel: per class, True when training has no boxes of it.
        synonyms: per class, all texts that stand for it when it is encoded; the first is its name.
        labels: what a user sees; equal to the names unless given.
        descriptions: per class, a sentence about it or '' .
    """

    names: tuple[str, ...]
    is_novel: tuple[bool, ...]
    synonyms: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    descriptions: tuple[str, ...]
    _index: dict[str, int] = field(compare=False, repr=False)

    def __init__(
        self,
        names: Sequence[str],
        novel: Sequence[str] = (),
        synonyms: Mapping[str, Sequence[str]] | Sequence[Sequence[str]] | None = None,
        descriptions: Mapping[str, str] | None = None,
        labels: Sequence[str] | None = None,
    ):
        """Check and store.

        Args:
            names: K class names; surrounding blanks are dropped.
            novel: the names that are novel.
            synonyms: further texts of each class, as K lists or as a mapping from some of the names; the
                name itself is put first when it is missing.
            descriptions: mapping from some of the names.
            labels: K names to show to the user, by default the names themselves.
        Raises:
            ValueError: no names; a name that is not a string, is blank or occurs twice (with its index); a
                key that is no class name.
        """
        clean = _clean(names, 'class name')
        if not clean:
            raise ValueError('a vocabulary needs at least one class name')
        shown = clean if labels is None else _clean(labels, 'label')
        if len(shown) != len(clean):
            raise ValueError(f'{len(clean)} class names came with {len(shown)} labels')
        index = {name: position for position, name in enumerate(clean)}
        index = {label: position for position, label in enumerate(shown)} | index
        fields = {
            'names': clean,
            'is_novel': _mark(clean, _clean(novel, 'novel class name'), index),
            'synonyms': _synonyms(clean, synonyms),
            'labels': shown,
            'descriptions': _by_name(clean, descriptions or {}, 'descriptions', ''),
            '_index': index,
        }
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    @classmethod
    def parse(cls, spec: VocabularySpec) -> 'Vocabulary':
        """The vocabulary that a user means by ``spec``.

        Args:
            spec: one of

                - a ``Vocabulary``;
                - a list of names, or of lists of synonyms whose first entry is the name;
                - a mapping from prompts to labels: classes are the labels in order of appearance (or by
                  number, when they are 0 .. K - 1), each encoded as all of its prompts;
                - a mapping with the key 'names' (any spelling of this list) and optionally 'novel',
                  'synonyms', 'descriptions', 'labels';
                - the name of a built-in set, see ``builtin_vocabularies``;
                - the path of a .txt file (a name per line) or .json file (any of these spellings, or an
                  annotation file with 'categories', whose rare classes become the novel ones);
                - one string: ``'a . b . c'``, or names separated by commas, semicolons or line ends.
        Raises:
            ValueError: see ``__init__``, or a spelling that is none of these.
            FileNotFoundError: a path that does not exist.
        """
        if isinstance(spec, Vocabulary):
            return spec
        if isinstance(spec, Path) or (isinstance(spec, str) and spec.lower().endswith(('.txt', '.json'))):
            return cls._from_file(Path(spec))
        if isinstance(spec, str):
            if spec in builtin_vocabularies():
                return cls._from_file(_ASSETS / f'{_ALIASES.get(spec, spec)}.json')
            if not spec.strip():
                raise ValueError('no words are given: the text is empty')
            names = _split(spec)
            if len(names) == 1 and Path(spec).suffix and os.path.isfile(spec):
                raise ValueError(f'{spec} is a file of an unknown kind, a vocabulary is a .txt or .json file')
            if len(names) == 1 and os.sep in spec and os.path.isdir(spec):
                raise ValueError(f'{spec} is a folder, expected words or a .txt or .json file of words')
            return cls(names)
        if isinstance(spec, Mapping):
            return cls._from_mapping(spec)
        if isinstance(spec, Sequence) and not isinstance(spec, bytes):
            groups = [[entry] if isinstance(entry, str) else entry for entry in spec]
            for index, group in enumerate(groups):
                if not isinstance(group, Sequence) or not group:
                    raise ValueError(f'class {index} is {group!r}, expected a name or a list of synonyms')
            return cls([group[0] for group in groups], synonyms=groups)
        raise ValueError(f'cannot read a vocabulary from {spec!r}')

    @classmethod
    def _from_file(cls, path: Path) -> 'Vocabulary':
        if not path.is_file():
            raise FileNotFoundError(f'vocabulary file {path} does not exist')
        try:
            text = path.read_text(encoding='utf-8-sig')
        except UnicodeDecodeError as error:
            raise ValueError(f'vocabulary file {path} is not in UTF-8: {error}') from None
        if path.suffix.lower() == '.txt':
            return cls(text.rstrip().splitlines())
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'vocabulary file {path} is no valid JSON: {error}') from None
        if not isinstance(content, (list, dict)):
            raise ValueError(f'vocabulary file {path} holds {content!r}, expected a list or an object')
        return cls.parse(content)

    @classmethod
    def _from_mapping(cls, spec: Mapping[str, Any]) -> 'Vocabulary':
        if isinstance(spec.get('categories'), list):
            return cls._from_categories(spec['categories'])
        if 'names' not in spec:
            return cls._from_prompts(spec)
        unknown = sorted(set(spec) - {*_FIELDS, 'source'})
        if unknown:
            raise ValueError(f'unknown keys {unknown} of a vocabulary, expected some of {list(_FIELDS)}')
        base = cls.parse(spec['names'])
        novel = spec.get('novel', base.novel_names)
        return cls(
            base.names,
            novel=cls.parse(novel).names if novel else (),
            synonyms=spec.get('synonyms', base.synonyms),
            descriptions=spec.get('descriptions', dict(zip(base.names, base.descriptions))),
            labels=spec.get('labels', base.labels),
        )

    @classmethod
    def _from_categories(cls, categories: list[dict[str, Any]]) -> 'Vocabulary':
        """Classes of an annotation file by rising id; LVIS marks the rare ones and lists synonyms."""
        for index, category in enumerate(categories):
            if not isinstance(category, dict) or not {'id', 'name'} <= set(category):
                raise ValueError(f'category {index} is {category!r}, expected an object with id and name')
        ordered = sorted(categories, key=lambda category: category['id'])
        return cls(
            [category['name'] for category in ordered],
            novel=[category['name'] for category in ordered if category.get('frequency') == 'r'],
            synonyms=[category.get('synonyms', [category['name']]) for category in ordered],
        )

    @classmethod
    def _from_prompts(cls, prompts: Mapping[str, Any]) -> 'Vocabulary':
        groups: dict[Any, list[str]] = {}
        for prompt, label in prompts.items():
            groups.setdefault(label, []).append(prompt)
        numbered = all(isinstance(label, int) for label in groups)
        if numbered:
            if sorted(groups) != list(range(len(groups))):
                raise ValueError(f'numbers of classes must be 0 .. K - 1, got {sorted(groups)}')
            groups = dict(sorted(groups.items()))
        elif not all(isinstance(label, str) for label in groups):
            raise ValueError(f'labels of prompts must be all names or all numbers, got {list(groups)}')
        texts = list(groups.values())
        return cls([t[0] for t in texts], synonyms=texts, labels=None if numbered else list(groups))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def index(self, name: str) -> int:
        """The label of a class, by its name or by the label shown to users."""
        if name not in self._index:
            raise KeyError(f'{name!r} is none of the {len(self)} classes of the vocabulary')
        return self._index[name]

    @property
    def base_names(self) -> tuple[str, ...]:
        """The names with boxes in training."""
        return tuple(name for name, novel in zip(self.names, self.is_novel) if not novel)

    @property
    def novel_names(self) -> tuple[str, ...]:
        """The names without boxes in training."""
        return tuple(name for name, novel in zip(self.names, self.is_novel) if novel)

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything in the vocabulary, the same on every machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe content that ``parse`` reads back into an equal vocabulary."""
        texts = {name: list(group) for name, group in zip(self.names, self.synonyms) if len(group) > 1}
        described = {name: text for name, text in zip(self.names, self.descriptions) if text}
        return {
            'names': list(self.names),
            'novel': list(self.novel_names),
            'synonyms': texts,
            'descriptions': described,
            'labels': list(self.labels),
        }


def builtin_vocabularies() -> list[str]:
    """Names of the sets that ship with the package."""
    return sorted([*(path.stem for path in _ASSETS.glob('*.json')), *_ALIASES])


def _clean(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Strip the names; refuse what is no name, is blank or is there twice."""
    if isinstance(names, str):
        raise ValueError(f'expected a list of {what}s, got the string {names!r}')
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f'{what} {index} is {name!r}, expected a string')
        if not name.strip():
            raise ValueError(f'{what} {index} is blank')
        if name.strip() in seen:
            raise ValueError(f'{what} {index} {name.strip()!r} repeats {what} {seen[name.strip()]}')
        seen[name.strip()] = index
    return tuple(seen)


def _mark(names: tuple[str, ...], novel: tuple[str, ...], index: Mapping[str, int]) -> tuple[bool, ...]:
    """Per class, whether it is one of ``novel``."""
    for name in novel:
        if name not in index:
            raise ValueError(f'novel class {name!r} is none of the {len(names)} class names')
    positions = {index[name] for name in novel}
    return tuple(position in positions for position in range(len(names)))


def _synonyms(
    names: tuple[str, ...], synonyms: Mapping[str, Sequence[str]] | Sequence[Sequence[str]] | None
) -> tuple[tuple[str, ...], ...]:
    """Per class its texts, the name first."""
    if synonyms is None:
        return tuple((name,) for name in names)
    if isinstance(synonyms, Mapping):
        synonyms = _by_name(names, synonyms, 'synonyms', ())
    if len(synonyms) != len(names):
        raise ValueError(f'{len(names)} class names came with {len(synonyms)} lists of synonyms')
    result = []
    for name, group in zip(names, synonyms):
        texts = _clean(group, f'synonym of {name!r}')
        result.append((name, *(text for text in texts if text != name)))
    return tuple(result)


def _by_name(names: tuple[str, ...], values: Mapping[str, Any], what: str, default: Any) -> tuple[Any, ...]:
    """The values of a mapping in the order of the names."""
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f'{what} are given for {unknown[0]!r}, which is none of the {len(names)} class names'
        )
    return tuple(values.get(name, default) for name in names)


def _split(text: str) -> list[str]:
    """Names of ``'a . b . c'``, ``'a. b. c.'``, ``'a, b; c'`` or one name; one final separator may stand."""
    text = text.strip()
    if ' . ' in text or text.endswith(' .'):
        return re.split(r'\s+\.\s+', re.sub(r'\s*\.$', '', text))
    if re.search(r'[,;\n]', text):
        return re.split(r'[,;\n]', re.sub(r'[,;]$', '', text))
    if text.endswith('.') and '. ' in text:
        return re.split(r'\.\s+', text[:-1])
    return [text]
