"""Map raw ids of a segmentation data set to labels of a vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine.logging import MMLogger

from ...options import check_option
from ...text.vocabulary import Vocabulary
from ..annotations import match_categories, shorten
from .label_maps import IGNORE_INDEX, LabelTable


@dataclass(frozen=True)
class ResolvedLabels:
    """Label of every raw id, and the labels that occur in the data set."""

    table: LabelTable
    annotated: tuple[int, ...]


@dataclass(frozen=True)
class LabelRules:
    """Rules for raw ids; see the arguments of ``OpenVocabularySegDataset`` of the same names."""

    background: str = 'none'
    background_ids: Sequence[int] = ()
    ignore_ids: Sequence[int] = ()
    absent_policy: str = 'drop'
    unseen_policy: str = 'keep'
    extra_words_policy: str = 'error'
    id_map: Mapping[int, str | int | None] = field(default_factory=dict)
    aliases: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_option('background', self.background, ('none', 'ignore', 'class'))
        check_option('absent_policy', self.absent_policy, ('drop', 'background', 'error'))
        check_option('unseen_policy', self.unseen_policy, ('drop', 'background', 'keep', 'error'))
        check_option('extra_words_policy', self.extra_words_policy, ('error', 'keep'))
        to_background = self.background_ids or 'background' in (self.absent_policy, self.unseen_policy)
        if self.background == 'none' and to_background:
            raise ValueError(
                "background='none' excludes background_ids, absent_policy='background' and "
                "unseen_policy='background': use background='ignore' or 'class'"
            )

    def with_special(self, background_id: int, ignore_id: int) -> 'LabelRules':
        """Copy with one id for background and one for ignored pixels."""
        return replace(self, background_ids=(background_id,), ignore_ids=(ignore_id,))

    def resolve(self, vocabulary: Vocabulary, raw_classes: Mapping[int, str], source: str) -> ResolvedLabels:
        """Compute the label of every raw id.

        Args:
            vocabulary: K classes; background is label K if it is a class.
            raw_classes: {raw id: name} of the data set.
            source: the data set, for messages.
        Raises:
            ValueError: a policy 'error' applies, a name does not exist, an id has two meanings.
        """
        labels = self._match(vocabulary, raw_classes, source)
        for raw, value in self.id_map.items():
            labels[raw] = self._label(value, vocabulary, source)
        annotated = {label for label in labels.values() if 0 <= label < len(vocabulary)}
        self._check_words(vocabulary, annotated, raw_classes, source)
        background = len(vocabulary) if self.background == 'class' else IGNORE_INDEX
        rules = {'drop': IGNORE_INDEX, 'background': background}
        refused = {}
        for raw in raw_classes:
            labels.setdefault(raw, rules.get(self.absent_policy, IGNORE_INDEX))
        for raw, label in labels.items():
            if 0 <= label < len(vocabulary) and vocabulary.is_novel[label]:
                labels[raw] = rules.get(self.unseen_policy, label)
                if self.unseen_policy == 'error':
                    name = vocabulary.labels[label]
                    refused[raw] = f"leakage: class {name!r} is unseen (unseen_policy='drop' ignores it)"
        special = dict.fromkeys(self.background_ids, background)
        ignored = dict.fromkeys(self.ignore_ids, IGNORE_INDEX)
        if twice := (special.keys() & ignored.keys()) | ((special.keys() | ignored.keys()) & labels.keys()):
            raise ValueError(f'{source}: id {min(twice)} is more than one of class, background and ignored')
        special |= ignored
        return ResolvedLabels(LabelTable(labels | special, refused), tuple(sorted(annotated)))

    def _match(self, vocabulary: Vocabulary, raw_classes: Mapping[int, str], source: str) -> dict[int, int]:
        """Labels of raw ids with a class in the vocabulary or an alias."""
        if unknown := self.aliases.keys() - set(raw_classes.values()):
            raise ValueError(f'aliases name {min(unknown)!r}, which is no class of {source}')
        aliased = {
            raw: self._label(self.aliases[name], vocabulary, source)
            for raw, name in raw_classes.items()
            if name in self.aliases
        }
        plain = {raw: name for raw, name in raw_classes.items() if raw not in aliased}
        matched = match_categories(vocabulary, [{'id': raw, 'name': name} for raw, name in plain.items()])
        left = [name for raw, name in plain.items() if raw not in matched and raw not in self.id_map]
        if left and self.absent_policy == 'error':
            raise ValueError(f'{source}: the vocabulary lacks {len(left)} of its classes: {shorten(left)}')
        if left:
            MMLogger.get_current_instance().info(
                f'{source}: {len(left)} of {len(raw_classes)} classes are outside the vocabulary '
                f'(absent_policy={self.absent_policy!r}): {shorten(left)}'
            )
        return aliased | matched

    def _label(self, value: str | int | None, vocabulary: Vocabulary, source: str) -> int:
        """Label of a value of ``id_map`` or ``aliases``."""
        if value is None:
            return IGNORE_INDEX
        if isinstance(value, str):
            try:
                return vocabulary.index(value)
            except KeyError as error:
                raise ValueError(f'{source}: {error.args[0]}') from None
        if not IGNORE_INDEX <= value < len(vocabulary) + (self.background == 'class'):
            raise ValueError(f'{source}: id_map gives label {value}, but there are {len(vocabulary)} classes')
        return value

    def _check_words(
        self, vocabulary: Vocabulary, annotated: set[int], raw_classes: Mapping[int, str], source: str
    ) -> None:
        """Raise ValueError for classes without pixels, likely typos; in testing they are distractors."""
        without = [label for label in range(len(vocabulary)) if label not in annotated]
        seen = [label for label in without if not vocabulary.is_novel[label]]
        if not annotated or (seen and self.extra_words_policy == 'error'):
            words = [vocabulary.names[label] for label in seen or without]
            raise ValueError(
                f'{source} lacks {len(words)} classes of the vocabulary: {shorten(words)}; its classes are '
                f'{shorten(sorted(set(raw_classes.values())))}'
            )


def name_ids(raw_classes: Any, raw_ids: int | Sequence[int] = 0) -> dict[int, str]:
    """{raw id: class name} of a data set.

    Args:
        raw_classes: such a mapping, or names as for :meth:`Vocabulary.parse`.
        raw_ids: the id of each name, or of the first of them.
    """
    if isinstance(raw_classes, Mapping) and all(isinstance(key, int) for key in raw_classes):
        return dict(raw_classes)
    names = Vocabulary.parse(raw_classes).names
    ids = range(raw_ids, raw_ids + len(names)) if isinstance(raw_ids, int) else list(raw_ids)
    if len(ids) != len(names) or len(set(ids)) != len(ids):
        raise ValueError(f'{len(names)} raw_classes need {len(names)} distinct raw_ids, got {ids}')
    return dict(zip(ids, names))
