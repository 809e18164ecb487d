"""Segmentation data sets whose labels are indices of a vocabulary.

Reading order: ``OpenVocabularySegDataset``, ``LoadSegmentation`` (its transform), ``label_rules.py`` (raw ids
to labels), ``label_maps.py`` (files of ids, painting).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from ...options import check_option
from ...registry import DATASETS, TRANSFORMS
from ...text.vocabulary import Vocabulary
from ..annotations import Annotations, file_name_of, read_annotations
from ..images import find_missing
from .label_maps import IGNORE_INDEX, paint_instances, read_label_map
from .label_rules import LabelRules, name_ids

__all__ = ['IGNORE_INDEX', 'LoadSegmentation', 'OpenVocabularySegDataset']

_GROUND, _CROWD = 0, 1  # raw ids of painted maps; instances' names follow
_PATHS = {'img_path': 'image', 'seg_map_path': 'label map'}


@DATASETS.register_module()
class OpenVocabularySegDataset(BaseDataset):
    """Images with label maps, or with instances that are painted into label maps.

    Labels are indices of the vocabulary; background, if it is a class, is K. ``metainfo`` has ``classes``,
    ``seen_classes``, ``unseen_classes`` (novel), ``annotated_classes`` (with labels in the data; the others
    are distractors), ``background``, ``vocabulary_hash`` and ``ann_file`` (or the folder of the maps).

    Args:
        ann_file: a ``.txt`` list of stems, one per line; a COCO-style ``.json`` of instances, painted from
            large to small; or empty: all images of the folder.
        data_prefix: ``img_path`` and, for label maps, ``seg_map_path``. The path of a map is that of its
            image with ``img_suffix`` replaced by ``seg_map_suffix``.
        vocabulary: as for :meth:`Vocabulary.parse`; by default ``raw_classes``, or the categories of the JSON
            by ascending id.
        raw_classes: class names of the data set by ascending raw id, as for :meth:`Vocabulary.parse`, or {raw
            id: name}; matched with the vocabulary by :func:`match_categories`.
        raw_ids: raw id of each of ``raw_classes``, or of the first one.
        id_map: {raw id: class name, label or ``None`` for ignored}; overrides ``raw_classes``.
        aliases: {raw class name: class name or ``None`` for ignored}; several may share a class.
        background: pixels of ``background_ids``, or under no instance, are ``'ignore'``d, a ``'class'``, or
            do not exist (``'none'``).
        background_ids, ignore_ids: raw ids of background and of ignored pixels.
        absent_policy: for pixels of raw classes outside the vocabulary: ``'drop'`` (ignored),
            ``'background'``, or ``'error'`` when the data set is built.
        unseen_policy: for pixels of unseen (novel) classes: ``'drop'`` (ignored; default in training),
            ``'background'``, ``'keep'`` (default in test mode) or ``'error'``.
        extra_words_policy: for classes of the vocabulary without pixels: ``'error'`` (default in training) or
            ``'keep'``.
        label_by: name of an instance: ``'category'``, a path into its annotation such as
            ``'attributes.color'``, or several of them, joined by blanks ('red star').
        crowd_policy: for crowd instances: ``'keep'``, ``'drop'`` (their pixels are ignored) or ``'skip'``
            (they are not painted).
        missing_policy: for images that are not on disk or have no map: ``'error'`` or ``'drop'``.
        path_parts: keep only the last so many parts of ``file_name`` in the JSON.
        kwargs: see ``mmengine.dataset.BaseDataset``.
    """

    METAINFO: dict[str, Any] = {}

    def __init__(
        self,
        ann_file: str = '',
        *,
        vocabulary: Any = None,
        raw_classes: Any = None,
        raw_ids: int | Sequence[int] = 0,
        id_map: Mapping[int, str | int | None] | None = None,
        aliases: Mapping[str, str | None] | None = None,
        background: str = 'none',
        background_ids: Sequence[int] = (),
        ignore_ids: Sequence[int] = (),
        absent_policy: str = 'drop',
        unseen_policy: str | None = None,
        extra_words_policy: str | None = None,
        label_by: str | Sequence[str] = 'category',
        crowd_policy: str = 'keep',
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.png',
        missing_policy: str = 'error',
        path_parts: int | None = None,
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        check_option('crowd_policy', crowd_policy, ('keep', 'drop', 'skip'))
        check_option('missing_policy', missing_policy, ('error', 'drop'))
        self.painted = ann_file.endswith('.json')
        self.label_by = (label_by,) if isinstance(label_by, str) else tuple(label_by)
        by_category = self.label_by == ('category',)
        self.rules = LabelRules(
            background=background,
            background_ids=tuple(background_ids),
            ignore_ids=tuple(ignore_ids),
            absent_policy=absent_policy,
            unseen_policy=unseen_policy or ('keep' if test_mode else 'drop'),
            extra_words_policy=extra_words_policy or ('keep' if test_mode or not by_category else 'error'),
            id_map=dict(id_map or {}),
            aliases=dict(aliases or {}),
        )
        self._check_arguments(ann_file, bool(raw_classes or id_map or background_ids or ignore_ids))
        self.vocabulary = None if vocabulary is None else Vocabulary.parse(vocabulary)
        self.raw_classes = name_ids(raw_classes, raw_ids) if raw_classes is not None else {}
        self.crowd_policy, self.missing_policy, self.path_parts = crowd_policy, missing_policy, path_parts
        self.img_suffix, self.seg_map_suffix = img_suffix, seg_map_suffix
        super().__init__(ann_file, test_mode=test_mode, **kwargs)

    def _check_arguments(self, ann_file: str, with_ids: bool) -> None:
        """Label maps need names of their ids; instances have none."""
        if self.painted == with_ids:
            raise ValueError(
                f'{ann_file or "label maps"}: raw_classes, id_map, background_ids and ignore_ids are for '
                'label maps, which need them, and not for instances'
            )
        if self.painted and self.rules.background == 'none':
            raise ValueError(f"{ann_file}: instances need background='ignore' or 'class'")

    def load_data_list(self) -> list[dict[str, Any]]:
        self.source = self.ann_file or str(self.data_prefix.get('seg_map_path'))
        return self._present(self._read_instances() if self.painted else self._list_maps())

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Record of one image, with the label table for ``LoadSegmentation``."""
        return {**super().get_data_info(idx), 'label_table': self.label_table}

    def _list_maps(self) -> list[dict[str, Any]]:
        """Records of images and label maps, in the order of the list or by path."""
        if self.vocabulary is None:
            self.vocabulary = Vocabulary([name for _, name in sorted(self.raw_classes.items())])
        self._resolve(self.vocabulary, self.rules, self.raw_classes)
        images, maps = self.data_prefix['img_path'], self.data_prefix.get('seg_map_path')
        records = []
        for stem in self._list_stems(Path(images)):
            record = {'img_path': os.path.join(images, stem + self.img_suffix), 'img_id': stem}
            if maps is not None:
                record['seg_map_path'] = os.path.join(maps, stem + self.seg_map_suffix)
            records.append(record)
        return records

    def _list_stems(self, images: Path) -> list[str]:
        if self.ann_file:
            return [line.strip() for line in Path(self.ann_file).read_text().splitlines() if line.strip()]
        if not images.is_dir():
            raise FileNotFoundError(f'folder of images {images} does not exist')
        files = sorted(images.rglob('*' + self.img_suffix))
        return [file.relative_to(images).as_posix().removesuffix(self.img_suffix) for file in files]

    def _read_instances(self) -> list[dict[str, Any]]:
        """Records of images and the masks to paint."""
        content = read_annotations(self.ann_file)
        names = self._instance_names(content)
        kinds = sorted(set(names.values()))
        if self.label_by == ('category',):
            kinds = [category['name'] for category in content['categories']]
        if self.vocabulary is None:
            self.vocabulary = Vocabulary(kinds)
        codes = {name: code for code, name in enumerate(kinds, start=_CROWD + 1)}
        rules = self.rules.with_special(background_id=_GROUND, ignore_id=_CROWD)
        self._resolve(self.vocabulary, rules, {code: name for name, code in codes.items()})
        segments: dict[int, list[tuple[int, Any]]] = {image['id']: [] for image in content['images']}
        for annotation in content['annotations']:
            if not annotation.get('segmentation'):
                raise ValueError(f'{self.ann_file}: annotation {annotation["id"]} has no mask')
            is_crowd = bool(annotation.get('iscrowd'))
            if not (is_crowd and self.crowd_policy == 'skip'):
                ignored = is_crowd and self.crowd_policy == 'drop'
                code = _CROWD if ignored else codes[names[annotation['id']]]
                segments[annotation['image_id']].append((code, annotation['segmentation']))
        return [
            {
                'img_path': os.path.join(
                    self.data_prefix['img_path'], file_name_of(image, self.path_parts, self.ann_file)
                ),
                'img_id': image['id'],
                'height': image['height'],
                'width': image['width'],
                'segments': segments[image['id']],
            }
            for image in content['images']
        ]

    def _instance_names(self, content: Annotations) -> dict[int, str]:
        """Name of every annotation by ``label_by``."""
        categories = {category['id']: category['name'] for category in content['categories']}
        names = {}
        for annotation in content['annotations']:
            words = []
            for path in self.label_by:
                value: Any = categories[annotation['category_id']] if path == 'category' else annotation
                for key in () if path == 'category' else path.split('.'):
                    value = value.get(key) if isinstance(value, Mapping) else None
                if not isinstance(value, str):
                    raise ValueError(
                        f'{self.ann_file}: annotation {annotation["id"]} has no text at {path!r} (label_by)'
                    )
                words.append(value)
            names[annotation['id']] = ' '.join(words)
        return names

    def _resolve(self, vocabulary: Vocabulary, rules: LabelRules, raw_classes: Mapping[int, str]) -> None:
        """Set the label table and the classes in ``metainfo``."""
        resolved = rules.resolve(vocabulary, raw_classes, self.source)
        self.label_table = resolved.table
        names = vocabulary.labels
        pairs = list(zip(names, vocabulary.is_novel))
        self._metainfo.update(
            classes=tuple(names),
            seen_classes=tuple(name for name, is_novel in pairs if not is_novel),
            unseen_classes=tuple(name for name, is_novel in pairs if is_novel),
            annotated_classes=tuple(names[label] for label in resolved.annotated),
            background=rules.background,
            vocabulary_hash=vocabulary.content_hash,
            ann_file=self.source,
        )

    def _present(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Records whose files are on disk; others by ``missing_policy``."""
        gone: set[str] = set()
        for key, what in _PATHS.items():
            missing = find_missing(record[key] for record in records if key in record)
            if missing and self.missing_policy == 'error':
                raise FileNotFoundError(
                    f'{what} {missing[0]} does not exist; {len(missing)} of {len(records)} are missing '
                    "(missing_policy='drop' drops them)"
                )
            gone |= set(missing)
        present = [record for record in records if not gone & {record.get(key) for key in _PATHS}]
        if not present:
            raise ValueError(f'{self.ann_file or self.data_prefix["img_path"]} has no images on disk')
        if gone:
            MMLogger.get_current_instance().info(
                f'{self.source}: dropped {len(records) - len(present)} images with missing files'
            )
        return present


@TRANSFORMS.register_module()
class LoadSegmentation(BaseTransform):
    """Load or paint the label map of an image of ``OpenVocabularySegDataset``.

    Adds ``gt_seg_map``, int16 or int32 [H, W], to the results and to ``seg_fields``. Place it before
    geometric transforms in training, and after them in testing, so that labels keep the original size.

    Args:
        to_grey: see :func:`read_label_map`.
    """

    def __init__(self, to_grey: bool = False) -> None:
        self.to_grey = to_grey

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        table, segments = results.pop('label_table'), results.pop('segments', None)
        if segments is None:
            source = str(results['seg_map_path'])
            raw = read_label_map(source, self.to_grey)
        else:
            source = str(results['img_path'])
            raw = paint_instances(segments, results['height'], results['width'], _GROUND, source)
        _check_size(source, raw.shape, results)
        results['gt_seg_map'] = table.apply(raw, source)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(to_grey={self.to_grey})'


def _check_size(source: str, found: tuple[int, ...], results: Mapping[str, Any]) -> None:
    """Raise ValueError if labels and image differ in size."""
    image = tuple(results.get('ori_shape', found))[:2]
    if tuple(found) == image:
        return
    message = (
        f'label map {source} is {found[1]} x {found[0]} pixels, its image {results["img_path"]} is '
        f'{image[1]} x {image[0]}'
    )
    if tuple(found) == image[::-1]:
        message += '; if the image was rotated by its EXIF orientation, load it with exif=False'
    raise ValueError(message)
