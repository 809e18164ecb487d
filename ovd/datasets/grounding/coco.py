"""Boxes of a detection data set under the words of its captions: COCO's instances and captions as grounding.

Reading order: CocoGroundingDataset, CaptionMatcher (which words of a caption get which boxes).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...options import check_option
from ...registry import DATASETS
from ...text.nouns import NameMatcher, widen_nouns
from ...text.phrases import SEPARATOR, clean_name
from ...text.vocabulary import Vocabulary
from ..annotations import box_problem, file_name_of, match_categories, read_annotations
from ..captions.dataset import read_coco_captions
from .dataset import GroundingDataset


@DATASETS.register_module()
class CocoGroundingDataset(GroundingDataset):
    """Captions whose words have the boxes of the classes that they name; a sample per caption.

    What a caption calls by a name, a synonym or a plural of a class gets all boxes of that class, together
    with the words before it that say how it looks. Where a caption calls one class by different words ('a
    man', 'a woman'), it is not known which boxes are whose: these words are in ``tokens_ignored``. So are
    words of classes that the image has no boxes of: captions name what annotators did not draw, and boxes of
    novel classes are not read unless ``novel_boxes`` is 'keep'. Crowds have no boxes.

    Args:
        ann_file: COCO instances.
        captions: COCO captions of the same images, below ``data_root``.
        vocabulary: any spelling of ``Vocabulary.parse``; matched with the categories of ``ann_file``.
        words: class name -> further words for it in captions, such as person -> man, woman.
        unnamed: 'append' the names of the classes that have boxes, but no words of their own in the caption,
            as further sentences ('A man rides. horse. car'), or 'drop' these boxes.
        path_parts: see ``file_name_of``.
        kwargs: see ``GroundingDataset``; it is no ``label_map`` that this data set takes.
    Raises:
        ValueError: captions and instances of different images, or words of an unknown class.
    """

    def __init__(
        self,
        *args: Any,
        captions: str | os.PathLike[str],
        vocabulary: Any,
        words: Mapping[str, Sequence[str]] | None = None,
        unnamed: str = 'append',
        path_parts: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_option('unnamed', unnamed, ('append', 'drop'))
        self.captions = captions
        self.unnamed = unnamed
        self.path_parts = path_parts
        self._words = CaptionMatcher(Vocabulary.parse(vocabulary), words or {})
        super().__init__(*args, vocabulary=vocabulary, **kwargs)

    def _records(self, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        assert self.vocabulary is not None
        content = read_annotations(file)
        labels = match_categories(self.vocabulary, content['categories'])
        is_novel = self.vocabulary.is_novel if self.novel_boxes != 'keep' else ()
        hidden = {label for label, novel in enumerate(is_novel) if novel}
        boxes: dict[Any, dict[int, list[list[float]]]] = {}  # by image id
        for annotation in content['annotations']:
            label = labels.get(annotation['category_id'])
            if label is not None and label not in hidden and not annotation.get('iscrowd'):
                if problem := box_problem(annotation.get('bbox')):
                    raise ValueError(
                        f'{file}: annotation {annotation["id"]}: box {annotation.get("bbox")} {problem}'
                    )
                x, y, width, height = annotation['bbox']
                own = boxes.setdefault(annotation['image_id'], {}).setdefault(label, [])
                own.append([x, y, x + width, y + height])
        path = os.path.join(self.data_root or '', self.captions)
        if not os.path.isfile(path):
            raise FileNotFoundError(f'caption file {path} does not exist')
        images = {image['id']: image for image in content['images']}
        for pair in read_coco_captions(path):
            if pair.image_id not in images:
                raise ValueError(f'{path}: {pair.where}: {file} has no such image')
            if isinstance(pair.caption, str) and pair.caption.strip():
                image = images[pair.image_id]
                grounding = self._words.ground(
                    ' '.join(pair.caption.split()), boxes.get(pair.image_id, {}), self.unnamed == 'append'
                )
                yield (
                    f'{path}: {pair.where}',
                    {
                        'filename': file_name_of(image, self.path_parts, str(file)),
                        'height': image['height'],
                        'width': image['width'],
                        'grounding': grounding,
                    },
                )


class CaptionMatcher:
    """Finds the words of a caption that name classes, and gives them the boxes of these.

    Args:
        vocabulary: the classes.
        words: class name -> further words.
    """

    def __init__(self, vocabulary: Vocabulary, words: Mapping[str, Sequence[str]]) -> None:
        unknown = [name for name in words if name not in vocabulary.names]
        if unknown:
            raise ValueError(f'words are given for {unknown[0]!r}, which is no class of the vocabulary')
        synonyms = [
            [*own, *(word for word in words.get(name, ()) if word not in own)]
            for name, own in zip(vocabulary.names, vocabulary.synonyms)
        ]
        self.vocabulary = vocabulary
        self._matcher = NameMatcher(Vocabulary(vocabulary.names, synonyms=synonyms))

    def ground(
        self, caption: str, boxes: Mapping[int, Sequence[Sequence[float]]], append: bool
    ) -> dict[str, Any]:
        """ODVG's ``grounding`` of a caption.

        Args:
            boxes: label -> xyxy boxes of the image.
            append: name the other classes of the image after the caption.
        """
        names = self._matcher.find(caption)
        spellings: dict[int, set[str]] = {}
        for noun in names:
            assert noun.label is not None
            spellings.setdefault(noun.label, set()).add(noun.text.casefold())
        known = {label for label in boxes if len(spellings.get(label, ())) == 1}
        spans: dict[int, list[list[int]]] = {}
        ignored = []
        for name, noun in zip(names, widen_nouns(caption, names)):
            assert noun.label is not None
            if noun.label in known:
                spans.setdefault(noun.label, []).append([noun.start, noun.end])
            else:
                ignored.append([name.start, name.end])
        if append:
            for label in (label for label in boxes if label not in known):
                caption += ' ' if caption.endswith('.') else SEPARATOR
                word = clean_name(self.vocabulary.names[label])
                spans[label] = [[len(caption), len(caption) + len(word)]]
                caption += word
        regions = [
            {
                'phrase': ' / '.join(caption[start:end] for start, end in ranges),
                'tokens_positive': ranges,
                'bbox': [list(box) for box in boxes[label]],
            }
            for label, ranges in spans.items()
        ]
        grounding: dict[str, Any] = {'caption': caption, 'regions': regions}
        return grounding | {'tokens_ignored': ignored} if ignored else grounding
