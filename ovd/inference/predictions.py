"""What a predictor finds on one image: instances, phrases of a sentence, or a word for every pixel."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..datasets.images import ImageSource, as_rgb
from ..evaluation.coco_results import encode_mask, instance_entries, map_entries
from ..optional import import_optional
from .draw import RGB, draw_instances, draw_segmentation, font_size, name_colors
from .draw_caption import Mark, draw_caption
from .result import Result

AnyPrediction = TypeVar('AnyPrediction', bound='Prediction')


@dataclass(frozen=True)
class Prediction(Result):
    """What was found on one image, best score first.

    Attributes:
        boxes: [N, 4] float32, xyxy in pixels of the original image.
        scores: [N] float32.
        labels: [N] int64, the place of each name in the vocabulary.
        names: N of the user's own words.
        masks: bool [N, H, W], or None when the model has no mask head.
        size: (H, W) of the original image.
        runners_up: per instance, the next best names of the same object with their scores.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    masks: np.ndarray | None
    size: tuple[int, int]
    runners_up: tuple[tuple[tuple[str, float], ...], ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.names)

    def select(
        self: AnyPrediction, score_threshold: float = 0.0, max_per_image: int | None = None
    ) -> AnyPrediction:
        """Keep the best ``max_per_image`` of the instances with at least ``score_threshold``."""
        keep = np.argsort(-self.scores, kind='stable')
        return self.keep(keep[self.scores[keep] >= score_threshold][:max_per_image])

    def keep(self: AnyPrediction, indices: np.ndarray) -> AnyPrediction:
        """The instances at these indices, in this order."""
        return replace(
            self,
            boxes=self.boxes[indices],
            scores=self.scores[indices],
            labels=self.labels[indices],
            names=tuple(self.names[index] for index in indices),
            masks=None if self.masks is None else self.masks[indices],
            runners_up=tuple(self.runners_up[index] for index in indices) if self.runners_up else (),
        )

    def suppress(self: AnyPrediction, iou: float, across_names: bool = False) -> AnyPrediction:
        """Without instances whose box overlaps a better one of the same name, or of any name, by more."""
        groups = np.zeros_like(self.labels) if across_names else self.labels
        return self.keep(non_maximum(self.boxes, self.scores, groups, iou))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; masks as COCO run lengths, which pycocotools decodes."""
        instances = [
            {'name': name, 'label': int(label), 'score': float(score), 'box': [float(value) for value in box]}
            for name, label, score, box in zip(self.names, self.labels, self.scores, self.boxes)
        ]
        if self.masks is not None:
            for instance, mask in zip(instances, self.masks):
                instance['mask'] = encode_mask(mask)
        for instance, others in zip(instances, self.runners_up):
            instance['runners_up'] = [{'name': name, 'score': score} for name, score in others]
        content = {'height': self.size[0], 'width': self.size[1], 'instances': instances}
        return content | self.competition()

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO results file.

        Args:
            image_id: of this image in the annotation file.
            category_ids: one for each label; by default the label plus one.
        """
        ids = [int(label) + 1 if category_ids is None else category_ids[label] for label in self.labels]
        return instance_entries(image_id, self.boxes, self.scores, ids, self.masks)

    def to_pandas(self) -> Any:
        """A table with a row for each instance: name, label, score, x1, y1, x2, y2 in pixels."""
        pandas = import_optional('pandas', 'export', 'to_pandas')
        columns = {'name': list(self.names), 'label': self.labels, 'score': self.scores}
        corners = self.boxes.reshape(-1, 4).T
        return pandas.DataFrame(columns | dict(zip(('x1', 'y1', 'x2', 'y2'), corners)))

    def to_supervision(self) -> Any:
        """``supervision.Detections``, with the names as ``data['class_name']``."""
        supervision = import_optional('supervision', 'export', 'to_supervision')
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={'class_name': np.array(self.names, dtype=str)},
        )

    def to_data_sample(self) -> Any:
        """mmdet's ``DetDataSample`` with ``pred_instances``: bboxes, scores, labels, masks as tensors."""
        import torch
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        values = {'bboxes': self.boxes, 'scores': self.scores, 'labels': self.labels, 'masks': self.masks}
        given = {key: torch.as_tensor(value) for key, value in values.items() if value is not None}
        instances = InstanceData(**given)
        return DetDataSample(pred_instances=instances, metainfo={'ori_shape': self.size})

    def draw(
        self,
        image: ImageSource,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> np.ndarray:
        """Draw the instances on their image, given as for ``Predictor.predict``; see ``draw_instances``."""
        pixels = _picture(image, self.size)
        return draw_instances(pixels, self.boxes, self.names, self.scores, self.masks, colors, font=font)


class Phrase(NamedTuple):
    """What a sentence names.

    Attributes:
        text: the user's own words.
        spans: their characters [start, end) of the sentence; several where the phrase is interrupted.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Grounding(Prediction):
    """Where the phrases of a sentence are on one image; labels are places in ``phrases``.

    Attributes:
        caption: the sentence.
        phrases: all that were looked for, found or not.
    """

    caption: str
    phrases: tuple[Phrase, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """A name for each phrase that no other has: equal ones are numbered, 'star (1)', 'star (2)'."""
        total, seen = Counter(phrase.text for phrase in self.phrases), Counter[str]()
        shown = []
        for text, _ in self.phrases:
            seen[text] += 1
            shown.append(text if total[text] == 1 else f'{text} ({seen[text]})')
        return tuple(shown)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: the sentence, its phrases in order, the instances."""
        phrases = [
            {'phrase': text, 'tokens_positive': [list(span) for span in spans]}
            for text, spans in self.phrases
        ]
        return {'caption': self.caption, 'phrases': phrases} | super().to_dict()

    def draw(
        self,
        image: ImageSource,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> np.ndarray:
        """Draw the instances on their image, with the sentence below; see ``draw_caption``.

        Args:
            image: the image, as for ``Predictor.predict``.
            colors: of the names in ``shown``, by default ``name_colors`` of these.
        """
        pixels = _picture(image, self.size)
        shown = self.shown
        colors = name_colors(shown) if colors is None else colors
        names = [shown[label] for label in self.labels]
        picture = draw_instances(pixels, self.boxes, names, self.scores, self.masks, colors, font=font)
        marks = [
            Mark(start, end, colors[name])
            for name, phrase in zip(shown, self.phrases)
            for start, end in phrase.spans
        ]
        height, width = picture.shape[:2]
        panel = draw_caption(self.caption, marks, width, font_size((width, height)), font)
        return np.concatenate([picture, panel])


@dataclass(frozen=True)
class Segmentation(Result):
    """A word for every pixel of one image.

    Attributes:
        labels: [H, W] int64: the place of a word in the vocabulary, ``background``, or -1 for no answer.
        vocabulary: the K words that were asked for, as the user wrote them.
        background: the label of what no word describes: K where the model has a background of its own, the
            place of the word that the list gives it (see ``find_background``), or None.
    """

    labels: np.ndarray
    vocabulary: tuple[str, ...]
    background: int | None = None

    def __len__(self) -> int:
        """Number of words on the image; background is none of them."""
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the original image."""
        height, width = self.labels.shape
        return height, width

    @property
    def names(self) -> tuple[str, ...]:
        """The words on the image, the largest first."""
        return tuple(self.vocabulary[label] for label in self._areas() if label != self.background)

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of each word on the image, the largest first; background is left out."""
        found = self._areas().items()
        return {self.vocabulary[label]: area for label, area in found if label != self.background}

    @property
    def background_area(self) -> int:
        """Pixels of background."""
        return 0 if self.background is None else self._areas().get(self.background, 0)

    @property
    def background_name(self) -> str | None:
        """The user's word for background, else 'background'; None where there is none."""
        if self.background is None:
            return None
        return (*self.vocabulary, 'background')[self.background]

    def mask(self, name: str) -> np.ndarray:
        """Pixels of a word, bool [H, W].

        Raises:
            KeyError: a word that was not asked for.
        """
        if name not in self.vocabulary:
            raise KeyError(f'{name!r} was not asked for; the words are {", ".join(self.vocabulary)}')
        mask: np.ndarray = self.labels == self.vocabulary.index(name)
        return mask

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: each label on the image with its pixels as COCO run lengths."""
        names = (*self.vocabulary, 'background')
        segments = [
            {
                'name': names[label],
                'label': label,
                'is_background': label == self.background,
                'area': area,
                'mask': encode_mask(self.labels == label),
            }
            for label, area in self._areas().items()
        ]
        height, width = self.size
        content = {'height': height, 'width': width, 'background': self.background, 'segments': segments}
        return content | self.competition()

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO results file for maps: one for each word on the image, without a score.

        Args:
            image_id, category_ids: as for ``Prediction``.
        """
        ids = range(1, len(self.vocabulary) + 1) if category_ids is None else category_ids
        return map_entries(image_id, self.labels, list(ids))

    def to_pandas(self) -> Any:
        """A table with a row for each word on the image: name, label, area in pixels, share of the image."""
        pandas = import_optional('pandas', 'export', 'to_pandas')
        found = {label: area for label, area in self._areas().items() if label != self.background}
        areas = np.array(list(found.values()), np.int64)
        columns = {'name': list(self.names), 'label': np.array(list(found), np.int64), 'area': areas}
        return pandas.DataFrame(columns | {'share': areas / self.labels.size})

    def to_supervision(self) -> Any:
        """``supervision.Detections``: one mask for each word on the image, without a score."""
        supervision = import_optional('supervision', 'export', 'to_supervision')
        instances = self.to_instances()
        return supervision.Detections(
            xyxy=instances.boxes,
            mask=instances.masks,
            class_id=instances.labels,
            data={'class_name': np.array(instances.names, dtype=str)},
        )

    def to_instances(self) -> Prediction:
        """The words on the image, the largest first, as objects: mask, box around it, and score 1."""
        found = [label for label in self._areas() if label != self.background]
        masks = np.array([self.labels == label for label in found]).reshape(-1, *self.size)
        boxes = [
            (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            for rows, columns in ([np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)] for mask in masks)
        ]
        return Prediction(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.ones(len(found), np.float32),
            labels=np.array(found, np.int64),
            names=tuple(self.vocabulary[label] for label in found),
            masks=masks,
            size=self.size,
            source=self.source,
        )

    def to_data_sample(self) -> Any:
        """mmseg's ``SegDataSample`` with ``pred_sem_seg``, int64 [1, H, W]."""
        import torch
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        labels = PixelData(data=torch.from_numpy(self.labels)[None])
        return SegDataSample(pred_sem_seg=labels, metainfo={'ori_shape': self.size})

    def draw(
        self,
        image: ImageSource,
        colors: dict[str, RGB] | None = None,
        font: str | os.PathLike[str] | None = None,
        show_background: bool = False,
    ) -> np.ndarray:
        """Draw the words on their image, given as for ``Predictor.predict``; see ``draw_segmentation``."""
        return draw_segmentation(
            _picture(image, self.size),
            self.labels,
            self.vocabulary,
            colors,
            background=self.background,
            show_background=show_background,
            font=font,
        )

    def _areas(self) -> dict[int, int]:
        """Pixels of each label on the image, the largest first, of equal ones the lowest."""
        labels, areas = np.unique(self.labels[self.labels >= 0], return_counts=True)
        order = np.argsort(-areas, kind='stable')
        return {int(labels[index]): int(areas[index]) for index in order}


BACKGROUND_WORDS = ('background', 'other', 'others')


def find_background(names: tuple[str, ...]) -> int | None:
    """The place of the word that stands for background: 'background', else 'other' or 'others', else None."""
    lowered = [name.lower() for name in names]
    return next((lowered.index(word) for word in BACKGROUND_WORDS if word in lowered), None)


def non_maximum(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou: float) -> np.ndarray:
    """Indices that non-maximum suppression keeps within each group, best score first.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        groups: whole numbers [N].
        iou: of two boxes that overlap more, the better is kept.
    """
    import torch
    from torchvision.ops import batched_nms

    tensors = [torch.from_numpy(np.ascontiguousarray(values)) for values in (boxes, scores, groups)]
    kept: np.ndarray = batched_nms(*tensors, iou).numpy()
    return kept


def _picture(image: ImageSource, size: tuple[int, int]) -> np.ndarray:
    """The RGB pixels of an image that a prediction of this size is about."""
    pixels = as_rgb(image)
    if pixels.shape[:2] != size:
        raise ValueError(f'this prediction is for an image of {size}, got one of {pixels.shape[:2]}')
    return pixels
