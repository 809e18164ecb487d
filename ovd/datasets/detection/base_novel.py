"""Detection data sets whose labels index a vocabulary of base and novel classes."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.logging import MMLogger

from ...options import check_option
from ...registry import DATASETS
from ...text.vocabulary import Vocabulary
from ..annotations import (
    Annotations,
    ClassSplit,
    box_problem,
    file_name_of,
    match_categories,
    read_annotations,
    shorten,
)
from ..images import find_missing
from ..masks import mask_problem


@DATASETS.register_module()
class OpenVocabularyDataset(CocoDataset):
    """Boxes and masks of a COCO-style file (COCO, LVIS, Objects365, OV-Shapes) or a VOC image set.

    Instance labels are indices of the vocabulary; annotations of categories outside the vocabulary or the
    split are skipped. ``metainfo`` has ``classes``, ``base_classes``, ``novel_classes``, ``category_ids``
    (one per class, ``None`` if the file has no such category), ``split``, ``ann_file``, ``vocabulary_hash``.

    Args:
        vocabulary: anything :meth:`Vocabulary.parse` takes; by default ``metainfo['classes']`` or else the
            category names of the file in the order of their ids.
        split: base and novel classes, see :meth:`ClassSplit.resolve`.
        novel_boxes: ``'refuse'`` (an error: leakage), ``'drop'`` or ``'keep'`` boxes of novel classes; by
            default kept in test mode and refused in training.
        degenerate_boxes: ``'refuse'`` or ``'drop'`` boxes without positive width and height, outside their
            image or not finite. The official COCO and LVIS files have a few, so their configs drop them.
            Boxes under one pixel wide or high are always skipped, as by mmdet.
        broken_masks: ``'refuse'`` or ``'drop'`` annotations whose mask is missing, damaged or of another
            image size, by default like ``degenerate_boxes``; checked if the pipeline loads masks.
        missing_images: ``'refuse'`` or ``'drop'`` images that are not on disk, or leave it ``'unchecked'``.
        path_parts: number of parts of ``file_name`` to keep, counted from the end. LVIS has only
            ``coco_url``, of which two are kept (``val2017/000000000139.jpg``).
        path_key: ``'file_name'`` or ``'coco_url'``, the key of the path of an image; by default the first
            that exists.
        filter_cfg: ``min_size`` (pixels) and ``filter_empty_gt`` (skip images without a box of the split) as
            in mmdet, but also in test mode: needed for the 4,836 images of OV-COCO.
        kwargs: see ``mmengine.dataset.BaseDataset``.

    Source of the split rules: Zareian et al., CVPR 2021 (COCO 48/17); Gu et al., ICLR 2022, Sec. 4 (LVIS).
    """

    METAINFO: dict[str, Any] = {}

    def __init__(
        self,
        *args: Any,
        vocabulary: Any = None,
        split: str | Mapping[str, Sequence[str]] | None = None,
        novel_boxes: str | None = None,
        degenerate_boxes: str = 'refuse',
        broken_masks: str | None = None,
        missing_images: str = 'refuse',
        path_parts: int | None = None,
        path_key: str | None = None,
        test_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocabulary = None if vocabulary is None else Vocabulary.parse(vocabulary)
        self.split = split
        self.novel_boxes = novel_boxes or ('keep' if test_mode else 'refuse')
        self.degenerate_boxes = degenerate_boxes
        self.broken_masks = broken_masks or degenerate_boxes
        self.missing_images = missing_images
        self.path_parts = path_parts
        self.path_key = path_key
        check_option('novel_boxes', self.novel_boxes, ('refuse', 'drop', 'keep'))
        check_option('degenerate_boxes', degenerate_boxes, ('refuse', 'drop'))
        check_option('broken_masks', self.broken_masks, ('refuse', 'drop'))
        check_option('missing_images', missing_images, ('refuse', 'drop', 'unchecked'))
        if path_key is not None:
            check_option('path_key', path_key, ('file_name', 'coco_url'))
        super().__init__(*args, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        content = read_annotations(self.ann_file)
        self._resolve_classes(content)
        self._skipped: Counter[str] = Counter()
        by_image: dict[int, list[dict[str, Any]]] = {image['id']: [] for image in content['images']}
        for annotation in content['annotations']:
            by_image[annotation['image_id']].append(annotation)
        self._loads_masks = any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms)
        images = self._present_images(content['images'])
        data_list = [
            self.parse_data_info({**image, 'annotations': by_image[image['id']]}) for image in images
        ]
        if self._skipped:
            counts = ', '.join(f'{count} {what}' for what, count in self._skipped.items())
            MMLogger.get_current_instance().info(f'{self.ann_file}: skipped {counts}')
        return data_list

    def _resolve_classes(self, content: Annotations) -> None:
        """Resolve vocabulary, labels and split, and store them in ``metainfo``."""
        categories = content['categories']
        if self.vocabulary is None:
            names = self._metainfo.get('classes')
            self.vocabulary = Vocabulary(names) if names else Vocabulary.parse({'categories': categories})
        self.cat2label = match_categories(self.vocabulary, categories)
        self.cat_ids = list(self.cat2label)
        self._check_unmatched(self.vocabulary, [category['name'] for category in categories])
        self.class_split = ClassSplit.resolve(self.split, self.vocabulary, categories, self.cat2label)
        self._base_labels, self._novel_labels = set(self.class_split.base), set(self.class_split.novel)
        names = self.vocabulary.labels
        category_ids = {label: category for category, label in self.cat2label.items()}
        self._metainfo.update(
            classes=tuple(names),
            base_classes=tuple(names[label] for label in self.class_split.base),
            novel_classes=tuple(names[label] for label in self.class_split.novel),
            category_ids=tuple(category_ids.get(label) for label in range(len(names))),
            split=self.class_split.name,
            ann_file=self.ann_file,
            vocabulary_hash=self.vocabulary.content_hash,
        )

    def _check_unmatched(self, vocabulary: Vocabulary, categories: list[str]) -> None:
        """Refuse classes without a category: typos in training, but valid distractors at test time."""
        matched = set(self.cat2label.values())
        absent = [
            name
            for label, name in enumerate(vocabulary.names)
            if label not in matched and not vocabulary.is_novel[label]
        ]
        if (absent and not self.test_mode) or not matched:
            words = absent or vocabulary.names
            raise ValueError(
                f'{self.ann_file} has no category for {len(words)} classes of the vocabulary: '
                f'{shorten(words)}; its categories are {shorten(categories)}'
            )

    def _present_images(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Images with ``img_path``; missing ones are treated according to ``missing_images``."""
        folder = self.data_prefix.get('img', '')
        named = [{**image, 'img_path': os.path.join(folder, self._file_name(image))} for image in images]
        if self.missing_images == 'unchecked':
            return named
        missing = set(find_missing(image['img_path'] for image in named))
        present = [image for image in named if image['img_path'] not in missing]
        if missing and self.missing_images == 'refuse':
            first = next(image for image in named if image['img_path'] in missing)
            raise FileNotFoundError(
                f'{self.ann_file}: image {first["id"]} ({first["img_path"]}) does not exist; '
                f"{len(named) - len(present)} of {len(images)} are missing (missing_images='drop' skips them)"
            )
        if missing:
            self._skipped['missing images'] = len(named) - len(present)
        return present

    def _file_name(self, image: Mapping[str, Any]) -> str:
        return file_name_of(image, self.path_parts, self.ann_file, self.path_key)

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        """Convert an image and its annotations to mmdet's layout; boxes xyxy in original pixels."""
        seg_folder = self.data_prefix.get('seg')
        stem = os.path.splitext(self._file_name(raw_data_info))[0]
        info = {
            'img_path': raw_data_info['img_path'],
            'img_id': raw_data_info['id'],
            'seg_map_path': os.path.join(seg_folder, stem + self.seg_map_suffix) if seg_folder else None,
            'height': raw_data_info['height'],
            'width': raw_data_info['width'],
            'instances': [],
        }
        if self.return_classes:
            info |= {
                'text': self._metainfo['classes'],
                'caption_prompt': self.caption_prompt,
                'custom_entities': True,
            }
        for annotation in raw_data_info['annotations']:
            if instance := self._parse_instance(annotation, info):
                info['instances'].append(instance)
        return info

    def _parse_instance(self, annotation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any] | None:
        """Convert an annotation to an instance; ``None`` if it is skipped."""
        label = self.cat2label.get(annotation['category_id'])
        if label is None or annotation.get('ignore', False) or not self._accepts_class(label, annotation):
            return None
        box: Any = annotation.get('bbox')
        if problem := _box_problem(box, info['width'], info['height']):
            if self.degenerate_boxes == 'refuse':
                raise ValueError(
                    f'{self.ann_file}: annotation {annotation["id"]} of image {info["img_id"]}: box {box} '
                    f"{problem} (degenerate_boxes='drop' skips such boxes)"
                )
            self._skipped['degenerate boxes'] += 1
            return None
        x, y, width, height = box
        if width < 1 or height < 1 or annotation.get('area') == 0:
            self._skipped['boxes under one pixel'] += 1
            return None
        mask = annotation.get('segmentation')
        if self._loads_masks and (problem := mask_problem(mask, info['height'], info['width'])):
            if self.broken_masks == 'refuse':
                raise ValueError(
                    f'{self.ann_file}: annotation {annotation["id"]} of image {info["img_id"]}: its mask '
                    f"{problem} (broken_masks='drop' skips such annotations)"
                )
            self._skipped['broken masks'] += 1
            return None
        instance = {
            'bbox': [x, y, x + width, y + height],
            'bbox_label': label,
            'ignore_flag': int(bool(annotation.get('iscrowd') or annotation.get('difficult'))),
        }
        if mask:
            instance['mask'] = mask
        return instance

    def _accepts_class(self, label: int, annotation: dict[str, Any]) -> bool:
        """Whether boxes of this class are used; raise on leakage."""
        if label in self._novel_labels:
            if self.novel_boxes == 'refuse':
                raise ValueError(
                    f'leakage: training file {self.ann_file} has boxes of the novel class '
                    f'{self._metainfo["classes"][label]!r} (annotation {annotation["id"]}, image '
                    f"{annotation['image_id']}); use a file of base boxes or novel_boxes='drop'"
                )
            if self.novel_boxes == 'drop':
                self._skipped['boxes of novel classes'] += 1
                return False
            return True
        return label in self._base_labels

    def filter_data(self) -> list[dict[str, Any]]:
        config = self.filter_cfg or {}
        kept = [
            info
            for info in self.data_list
            if min(info['width'], info['height']) >= config.get('min_size', 0)
            and (info['instances'] or not config.get('filter_empty_gt', False))
        ]
        if not kept:
            raise ValueError(
                f'{self.ann_file}: none of {len(self.data_list)} images passes the filter {config}'
            )
        return kept


def _box_problem(box: Any, width: int, height: int) -> str | None:
    """Describe what is wrong with [x, y, w, h] in an image of this size; None if nothing."""
    if problem := box_problem(box):
        return problem
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return 'has no area'
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f'lies outside the image of {width} x {height} pixels'
    return None
